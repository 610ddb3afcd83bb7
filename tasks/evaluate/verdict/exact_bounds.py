"""Exact confidence bounds of a paired difference of proportions (Tango 1998, Buehler 1957).

Valid for any number of items and of flips.  Of n paired items, `lost` go from right to wrong and `gained` from wrong to right: one
draw of a trinomial distribution with probabilities p_lost and p_gained.  The bound is on p_gained - p_lost; their sum, the
discordance, is a nuisance parameter, restricted to a confidence interval (Berger and Boos 1994).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from tasks.evaluate.verdict.paired_tests import Flips, count_flips

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NUISANCE = 500
"""alpha / NUISANCE is spent on restricting the discordance to a confidence interval (Berger and Boos 1994)."""
POINTS, FEWEST_POINTS = 4, 64
"""Grid of discordances: points per standard error of the share of flips, and the minimum number of points."""
BETWEEN = 1e-6
"""Upper bound on how much the probability between grid points exceeds the largest one at a grid point."""
PRECISION = 1e-6
"""Of a bound, rounded outward."""
TAIL = 1e-9
"""Probability mass of gained counts that sums leave out."""
HALVINGS = 45
"""Bisection steps on the interval from -1 to the observed difference: down to rounding error."""
TIE = 1e-8
"""Score statistics closer than this count as equal."""


@dataclass(frozen=True)
class Interval:
    """A value with its bounds."""

    value: float
    low: float
    high: float


def difference_bounds(baseline: Sequence[bool], candidate: Sequence[bool], alpha: float) -> Interval:
    """Candidate - baseline accuracy with exact one-sided 1 - alpha bounds.

    baseline, candidate: (n,) paired right/wrong answers.  Items that did not flip count by their number: without any flip, the bounds
    of 40 items are 7.2 points from zero (docs/decisions/0010-the-bound-that-decides.md).
    Raises ValueError if the lengths differ or there is no item.
    """
    return flip_bounds(count_flips(baseline, candidate), alpha)


def flip_bounds(flips: Flips, alpha: float) -> Interval:
    """Return `difference_bounds` from flip counts."""
    value = (flips.to_right - flips.to_wrong) / flips.items
    low = lower_bound(flips.to_wrong, flips.to_right, flips.items, alpha)
    high = -lower_bound(flips.to_right, flips.to_wrong, flips.items, alpha)
    return Interval(value, min(low, value), max(high, value))


@lru_cache(maxsize=8192)
def lower_bound(lost: int, gained: int, items: int, alpha: float) -> float:
    """Exact one-sided lower 1 - alpha bound of p_gained - p_lost.

    Outcomes are ordered by Tango's score bound; this is the tightest bound that keeps the order (Buehler 1957).
    """
    order = float(score_bound(lost, gained, items, alpha))
    return lowest_difference(order, lost + gained, items, alpha, (gained - lost) / items)


def lowest_difference(order: float, flipped: float, items: int, alpha: float, expected: float) -> float:
    """Smallest difference at which a score bound of `order` or better is not significant.

    At this difference its probability exceeds alpha; below it, never (Buehler 1957).
    flipped: number of flips, observed or expected; discordances outside its confidence interval are left out.
    expected: a difference at which such outcomes are common; the search goes down from it.
    """
    from scipy.optimize import brentq

    p = p_value_function(order, flipped, items, alpha, expected)
    start = max(-1.0, 2.0 * order - expected)
    if p(start) > alpha:
        start = -1.0
    if start == -1.0 and p(start) > alpha:
        return -1.0
    if p(expected) <= alpha:
        return expected
    found = float(brentq(lambda difference: p(difference) - alpha, start, expected, xtol=PRECISION / 4))
    while p(found) > alpha:
        found -= PRECISION
    return found


def p_value_function(
    order: float, flipped: float, items: int, alpha: float, largest: float = 1.0
) -> Callable[[float], float]:
    """Return the exact p-value of "the difference is at most d" as a function of d.

    Valid for d <= `largest`.  The probability of a score bound of at least `order`, maximized over the discordances in the
    1 - alpha / NUISANCE confidence interval of `flipped`, plus alpha / NUISANCE (Berger and Boos 1994).
    """
    from scipy.stats import beta, binom

    nuisance = alpha / NUISANCE
    fewest = float(beta.ppf(nuisance / 2, flipped, items - flipped + 1)) if flipped > 0 else 0.0
    most = float(beta.isf(nuisance / 2, flipped + 1, items - flipped)) if flipped < items else 1.0
    gained = int(binom.isf(TAIL, items, min(1.0, (most + largest) / 2)))
    limits = largest_losses(order, items, alpha, gained)
    return lambda difference: _most_probable(limits, items, difference, fewest, most) + BETWEEN + nuisance


def _most_probable(limits: "np.ndarray", items: int, difference: float, fewest: float, most: float) -> float:
    """Largest probability of at most limits[gained] losses, over discordances fewest to most.

    limits: (gained,).  Given the number gained, the number lost is binomial.  Evaluated on a (discordances, gained) grid.
    """
    import numpy as np
    from scipy.stats import binom

    fewest = max(fewest, abs(difference))
    if fewest > most:
        return 0.0
    # the arcsine scale stabilizes the variance of a share
    first, last = np.arcsin(fewest**0.5), np.arcsin(most**0.5)
    angles = np.linspace(first, last, max(FEWEST_POINTS, int(POINTS * 2.0 * items**0.5 * (last - first))))
    discordance = np.clip(np.sin(angles) ** 2, fewest, most)
    p_gained, p_lost = (discordance + difference) / 2.0, (discordance - difference) / 2.0
    least, largest = int(binom.ppf(TAIL, items, p_gained[0])), int(binom.isf(TAIL, items, p_gained[-1]))
    gained = np.arange(max(0, least), min(largest + 1, len(limits)))  # (gained,)
    left = np.maximum(1.0 - p_gained, np.finfo(float).tiny)
    below = binom.cdf(limits[gained], items - gained, np.minimum(1.0, p_lost / left)[:, None])
    chances = (binom.pmf(gained, items, p_gained[:, None]) * below).sum(axis=1)  # (discordances,)
    best = int(chances.argmax())
    top = float(chances[best])
    if 0 < best < len(chances) - 1:  # peak of the parabola through the maximum and its neighbors
        before, after = float(chances[best - 1]), float(chances[best + 1])
        top += (after - before) ** 2 / max(8.0 * (2.0 * top - before - after), TAIL)
    return top


def largest_losses(order: float, items: int, alpha: float, reach: int) -> "np.ndarray":
    """Most items that may be lost for a score bound of at least `order`, by gained count.

    Returns (min(reach, items) + 1,), for 0 to `reach` gained items; -1 where no number of losses qualifies.
    """
    import numpy as np

    gained = np.arange(min(reach, items) + 1)
    fits, fails = np.full(gained.shape, -1), items - gained + 1
    critical = _critical(alpha) - TIE
    while (fails - fits > 1).any():
        middle = (fits + fails) // 2
        good = score_statistic(middle, gained, items, order) >= critical
        fits, fails = np.where(good, middle, fits), np.where(good, fails, middle)
    return fits


def score_statistic(
    lost: "npt.ArrayLike", gained: "npt.ArrayLike", items: int, difference: "npt.ArrayLike"
) -> "np.ndarray":
    """Score statistic of a paired difference of proportions (Tango 1998, Stat. Med. 17:891).

    In standard errors under the null hypothesis that the true difference is `difference`; positive if the data exceed it.
    lost, gained, difference: broadcast together.
    """
    import numpy as np

    lost, gained, difference = (np.asarray(part, dtype=float) for part in (lost, gained, difference))
    linear = (2 * items - gained + lost) * difference - lost - gained
    constant = -lost * difference * (1.0 - difference)
    p_lost = (np.sqrt(np.maximum(linear**2 - 8.0 * items * constant, 0.0)) - linear) / (4.0 * items)
    variance = items * (2.0 * p_lost + difference * (1.0 - difference))
    return (gained - lost - items * difference) / np.sqrt(np.maximum(variance, np.finfo(float).tiny))


def score_bound(lost: "npt.ArrayLike", gained: "npt.ArrayLike", items: int, alpha: float) -> "np.ndarray":
    """Tango's one-sided lower score bound, vectorized over lost and gained.

    Only orders outcomes: by itself its error exceeds alpha (7.1 % for 30 items at alpha 5 %).
    """
    import numpy as np

    lost, gained = np.asarray(lost, dtype=float), np.asarray(gained, dtype=float)
    low, high = np.full(np.broadcast(lost, gained).shape, -1.0), (gained - lost) / items
    for _ in range(HALVINGS):
        middle = (low + high) / 2.0
        above = score_statistic(lost, gained, items, middle) > _critical(alpha)
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return low


@lru_cache(maxsize=64)
def _critical(alpha: float) -> float:
    from scipy.stats import norm

    return float(norm.isf(alpha))
