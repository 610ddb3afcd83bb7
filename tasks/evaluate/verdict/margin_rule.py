"""The rule for one measure: its loss is within the margin, beyond it, or undecided."""

from typing import Literal

from tasks.evaluate.verdict.exact_bounds import Interval

Answer = Literal["yes", "no", "unknown"]


def decide(interval: Interval, margin: float, detectable: float) -> Answer:
    """Decide whether a candidate loses at most `margin`, from the bounds of its difference.

    interval: one-sided 1 - alpha bounds.  detectable: margin that an equal candidate would pass with the required power.
    yes       the lower bound is above -margin: a candidate that loses `margin` or more gets this with probability alpha at most
    no        a loss is proven (the upper bound is below zero), and either the estimate is beyond the margin or the items suffice to pass
              an equal candidate (detectable <= margin): one that loses nothing gets this with probability alpha at most
    unknown   otherwise: neither safety nor loss is proven
    """
    if interval.low > -margin:
        return "yes"
    if interval.high < 0.0 and (interval.value <= -margin or detectable <= margin):
        return "no"
    return "unknown"
