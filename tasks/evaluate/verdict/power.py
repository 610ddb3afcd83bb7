"""What n items can tell: the smallest differences that a test finds, and the answer that an interval gives."""

import math
from typing import Literal

from tasks.evaluate.verdict.exact_bounds import TAIL, Interval, largest_losses, lowest_difference
from tasks.evaluate.verdict.intervals import unseen_share

Answer = Literal["yes", "no", "unknown"]
PRECISION = 1e-6
"""Of a difference that is searched for."""
SLACK = 1e-5
"""Added to a detectable margin, so that no bound's rounding error decides whether it is passed."""
MANY = 0.95
"""Quantile of the number of flips with which a detectable margin is computed; with fewer the bound is the same or closer."""


def minimum_detectable(items: int, discordance: float, alpha: float, power: float) -> float:
    """Smallest margin that an equally good candidate passes with probability `power`; 1.0 at most.

    discordance: share of items expected to flip, half of them each way: what the noise floor of repeats shows, or a guess.
    Computed from the distribution of flips and the very bound that decides, not from a normal approximation.
    """
    from scipy.optimize import bisect
    from scipy.stats import binom

    def passes(order: float) -> float:
        return _at_least(order, items, alpha, discordance / 2.0) - power

    order, worst, best = -1.0, PRECISION - 1.0, 1.0 - PRECISION
    if passes(worst) >= 0.0:
        order = float(bisect(passes, worst, best, xtol=PRECISION))
    many = float(binom.isf(1.0 - MANY, items, discordance))
    return min(1.0, SLACK - lowest_difference(order - PRECISION, many, items, alpha, 0.0))


def _at_least(order: float, items: int, alpha: float, chance: float) -> float:
    """Probability of a score bound of `order` or better, where items are lost and gained with the same chance."""
    import numpy as np
    from scipy.stats import binom

    limits = largest_losses(order, items, alpha, int(binom.isf(TAIL, items, chance)))
    gained = np.arange(len(limits))
    return float((binom.pmf(gained, items, chance) * binom.cdf(limits, items - gained, chance / (1.0 - chance))).sum())


def detectable_loss(items: int, discordance: float, alpha: float, power: float) -> float:
    """Smallest true loss that the one-sided exact McNemar test (`harm_p` <= alpha) finds with probability `power`; 1.0 if none.

    discordance: share of items that would flip without a loss, half of them each way; the loss adds to those that go wrong.
    Exact: the critical number of lost items for every number of flips.
    """
    from scipy.optimize import brentq

    most = 1.0 - discordance

    def finds(loss: float) -> float:
        return harm_power(items, discordance / 2.0 + loss, discordance / 2.0, alpha) - power

    if most <= 0.0 or finds(most) < 0.0:
        return 1.0
    return float(brentq(finds, 0.0, most, xtol=PRECISION))


def harm_power(items: int, p_lost: float, p_gained: float, alpha: float) -> float:
    """Probability that `harm_p` <= alpha, where each item is lost or gained with these chances."""
    import numpy as np
    from scipy.stats import binom

    flips = np.arange(items + 1)
    critical = binom.isf(alpha, flips, 0.5) + 1.0  # fewest lost ones that are significant
    found = binom.sf(critical - 1.0, flips, p_lost / (p_lost + p_gained) if p_lost else 0.0)
    return float((binom.pmf(flips, items, p_lost + p_gained) * found).sum())


def detectable_mean(deviation: float, items: float, alpha: float, power: float, reach: float = math.inf) -> float:
    """For amounts: smallest margin that an equal candidate passes with probability `power`, and smallest loss that is found.

    deviation, items: of the paired differences, as `weighted_spread` gives them.  reach: the most that one item can change, and the
    answer for fewer than two items.  Student's t with normal differences; rare large ones need more, for the deciding bound is then
    wider.  Where nothing differs it is what so many items can miss.
    """
    from statsmodels.stats.power import TTestPower

    if items < 2.0:
        return reach
    if deviation == 0.0:
        return min(reach, unseen_share(items, alpha) * reach)
    effect = TTestPower().solve_power(nobs=items, alpha=alpha, power=power, alternative="larger")
    return min(reach, float(effect) * deviation)


def decide(interval: Interval, margin: float, detectable: float) -> Answer:
    """Whether a candidate may lose at most `margin`, from the one-sided 1 - alpha bounds of its difference, and from what is detectable.

    yes       its low bound lies above -margin: a candidate that loses `margin` or more gets this with probability alpha at most
    no        a loss is shown (its high bound lies below zero), and either its best estimate is beyond the margin or the test was large
              enough to pass an equal candidate (detectable <= margin): one that loses nothing gets this with probability alpha at most
    unknown   otherwise: neither safety nor harm is shown
    """
    if interval.low > -margin:
        return "yes"
    if interval.high < 0.0 and (interval.value <= -margin or detectable <= margin):
        return "no"
    return "unknown"
