"""The bounds that decide for right/wrong answers: exact, whatever the number of items and however many of them flip.

Of n paired items, `lost` go from right to wrong and `gained` from wrong to right: one draw of a trinomial distribution with
chances p_lost and p_gained.  What is asked for is a bound of p_gained - p_lost; their sum, the discordance, is a nuisance.
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
"""1 / NUISANCE of alpha pays for looking only at discordances that the data allow (Berger and Boos 1994)."""
POINTS, FEWEST_POINTS = 4, 64
"""Discordances looked at: per standard error of the share of flips, and in any case."""
BETWEEN = 1e-6
"""More probability than is found at these points is nowhere between them."""
PRECISION = 1e-6
"""Of a bound, which errs to the outside."""
TAIL = 1e-9
"""Probability of numbers of gained items that are left out of sums."""
HALVINGS = 45
"""Of the interval from -1 to the observed difference: to rounding error."""
TIE = 1e-8
"""Differences between score statistics that count as none."""


@dataclass(frozen=True)
class Interval:
    """A value with its bounds."""

    value: float
    low: float
    high: float


def difference_bounds(baseline: Sequence[bool], candidate: Sequence[bool], alpha: float) -> Interval:
    """Candidate - baseline accuracy over (n,) paired items; each bound is an exact one-sided 1 - alpha bound.

    Raises ValueError if the lengths differ or there is no item.  Items on which nothing flipped prove something only by their
    number: without a flip the bounds of 40 items are 7.2 points from zero (docs/decisions/0010-the-bound-that-decides.md).
    """
    return flip_bounds(count_flips(baseline, candidate), alpha)


def flip_bounds(flips: Flips, alpha: float) -> Interval:
    """`difference_bounds` of counted flips."""
    value = (flips.to_right - flips.to_wrong) / flips.items
    low = lower_bound(flips.to_wrong, flips.to_right, flips.items, alpha)
    high = -lower_bound(flips.to_right, flips.to_wrong, flips.items, alpha)
    return Interval(value, min(low, value), max(high, value))


@lru_cache(maxsize=8192)
def lower_bound(lost: int, gained: int, items: int, alpha: float) -> float:
    """One-sided 1 - alpha bound from below of p_gained - p_lost, exact.

    Tables are ordered by Tango's score bound, and the bound is the tightest one that keeps this order (Buehler 1957).
    """
    order = float(score_bound(lost, gained, items, alpha))
    return lowest_difference(order, lost + gained, items, alpha, (gained - lost) / items)


def lowest_difference(order: float, flipped: float, items: int, alpha: float, expected: float) -> float:
    """Smallest difference under which a score bound of `order` or better is not rarer than alpha; below it, always rarer.

    flipped: items that flipped, as observed or expected; discordances at odds with it are left out.  expected: a difference under
    which such tables are common, from which the search goes down.
    """
    from scipy.optimize import brentq

    p = rarity(order, flipped, items, alpha, expected)
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


def rarity(order: float, flipped: float, items: int, alpha: float, largest: float = 1.0) -> Callable[[float], float]:
    """The exact p-value of "the difference is at most d", as a function of d up to `largest`, for tables with this score bound.

    It is the probability of that score bound or a better one, at the worst of the discordances that `flipped` allows at confidence
    1 - alpha / NUISANCE, plus the chance that the true one is not among them.
    """
    from scipy.stats import beta, binom

    nuisance = alpha / NUISANCE
    fewest = float(beta.ppf(nuisance / 2, flipped, items - flipped + 1)) if flipped > 0 else 0.0
    most = float(beta.isf(nuisance / 2, flipped + 1, items - flipped)) if flipped < items else 1.0
    gained = int(binom.isf(TAIL, items, min(1.0, (most + largest) / 2)))
    limits = largest_losses(order, items, alpha, gained)
    return lambda difference: _most_probable(limits, items, difference, fewest, most) + BETWEEN + nuisance


def _most_probable(limits: "np.ndarray", items: int, difference: float, fewest: float, most: float) -> float:
    """Largest probability, over the discordances from fewest to most, that at most limits[gained] items are lost.

    Given how many are gained, the number of lost ones is binomial; (discordances, gained) at once.
    """
    import numpy as np
    from scipy.stats import binom

    fewest = max(fewest, abs(difference))
    if fewest > most:
        return 0.0
    # on this scale chance moves every share equally far
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
    if 0 < best < len(chances) - 1:  # the peak of the parabola through the largest and its neighbors
        before, after = float(chances[best - 1]), float(chances[best + 1])
        top += (after - before) ** 2 / max(8.0 * (2.0 * top - before - after), TAIL)
    return top


def largest_losses(order: float, items: int, alpha: float, reach: int) -> "np.ndarray":
    """How many items may be lost, -1 for none, so that the score bound is still `order` or better; for 0 to `reach` gained ones."""
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
    """How far the data lie above `difference`, in standard errors as they would be under it (Tango 1998, Stat. Med. 17:891)."""
    import numpy as np

    lost, gained, difference = (np.asarray(part, dtype=float) for part in (lost, gained, difference))
    linear = (2 * items - gained + lost) * difference - lost - gained
    constant = -lost * difference * (1.0 - difference)
    p_lost = (np.sqrt(np.maximum(linear**2 - 8.0 * items * constant, 0.0)) - linear) / (4.0 * items)
    variance = items * (2.0 * p_lost + difference * (1.0 - difference))
    return (gained - lost - items * difference) / np.sqrt(np.maximum(variance, np.finfo(float).tiny))


def score_bound(lost: "npt.ArrayLike", gained: "npt.ArrayLike", items: int, alpha: float) -> "np.ndarray":
    """Tango's one-sided bound from below, vectorized.  It puts tables in order; by itself it errs too often (7.1 % of 30 items, alpha 5 %)."""
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
