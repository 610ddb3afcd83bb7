"""Power analysis: smallest detectable differences, and the decision from an interval."""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

from tasks.evaluate.verdict.exact_bounds import TAIL, largest_losses, lowest_difference
from tasks.evaluate.verdict.intervals import unseen_share

PRECISION = 1e-6
"""Tolerance of root finding on a difference."""
SLACK = 1e-5
"""Added to a detectable margin, so that rounding in a bound cannot decide whether it is passed."""
MANY = 0.95
"""Quantile of the flip count used for a detectable margin; with fewer flips the bound is equal or tighter."""

MOST_ITEMS = 1_000_000
"""Largest number of items that `items_needed` looks at."""


@lru_cache(maxsize=8192)
def minimum_detectable(items: int, discordance: float, alpha: float, power: float) -> float:
    """Smallest margin that an equally good candidate passes with probability `power`.

    discordance: expected share of flips, half in each direction: the noise floor of repeats, or a guess.
    Computed from the trinomial distribution of flips and the exact bound that decides (Tango 1998, Buehler 1957), not from a normal
    approximation.  At most 1.0.
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


def items_needed(margin: float, discordance: float, alpha: float, power: float) -> int:
    """Fewest items, to about 5 %, with which an equally good candidate passes this margin.

    See `minimum_detectable`; at most `MOST_ITEMS`.
    """
    few, many = 1, 16
    while minimum_detectable(many, discordance, alpha, power) > margin:
        few, many = many, 2 * many
        if many > MOST_ITEMS:
            return MOST_ITEMS
    while many - few > 0.05 * many:
        middle = (few + many) // 2
        few, many = (few, middle) if minimum_detectable(middle, discordance, alpha, power) <= margin else (middle, many)
    return many


def _at_least(order: float, items: int, alpha: float, chance: float) -> float:
    """Probability of a score bound of at least `order` if losses and gains are equally likely."""
    import numpy as np
    from scipy.stats import binom

    limits = largest_losses(order, items, alpha, int(binom.isf(TAIL, items, chance)))
    gained = np.arange(len(limits))
    return float((binom.pmf(gained, items, chance) * binom.cdf(limits, items - gained, chance / (1.0 - chance))).sum())


@lru_cache(maxsize=8192)
def detectable_loss(items: int, discordance: float, alpha: float, power: float) -> float:
    """Smallest true loss that the one-sided exact McNemar test detects with probability `power`.

    discordance: expected share of flips without a loss, half in each direction; the loss adds to those that go wrong.
    Exact: uses the critical number of losses for every number of flips.  Returns 1.0 if no loss is detectable.
    """
    from scipy.optimize import brentq

    most = 1.0 - discordance

    def finds(loss: float) -> float:
        return mcnemar_power(items, discordance / 2.0 + loss, discordance / 2.0, alpha) - power

    if most <= 0.0 or finds(most) < 0.0:
        return 1.0
    return float(brentq(finds, 0.0, most, xtol=PRECISION))


def mcnemar_power(items: int, p_lost: float, p_gained: float, alpha: float) -> float:
    """Power of `mcnemar_loss_p` at level alpha; p_lost, p_gained: probabilities per item."""
    import numpy as np
    from scipy.stats import binom

    flips = np.arange(items + 1)
    critical = binom.isf(alpha, flips, 0.5) + 1.0  # fewest losses that are significant
    found = binom.sf(critical - 1.0, flips, p_lost / (p_lost + p_gained) if p_lost else 0.0)
    return float((binom.pmf(flips, items, p_lost + p_gained) * found).sum())


def detectable_mean(deviation: float, items: float, alpha: float, power: float, reach: float = math.inf) -> float:
    """Smallest margin that an equal candidate passes with probability `power`, for amounts.

    Also the smallest detectable loss.  deviation, items: paired differences, from `weighted_spread`.  reach: largest change one item can
    make; returned for fewer than two items.  One-sample t test power with normal differences; rare large losses need more, since the
    deciding bound is then wider.  Without any difference: what so many items can miss (Clopper and Pearson 1934).
    """
    from statsmodels.stats.power import TTestPower

    if items < 2.0:
        return reach
    if deviation == 0.0:
        return min(reach, unseen_share(items, alpha) * reach)
    effect = TTestPower().solve_power(nobs=items, alpha=alpha, power=power, alternative="larger")
    return min(reach, float(effect) * deviation)


def several_notes(candidates: Sequence[str], alpha: float, shared: bool) -> Iterator[str]:
    """Yield a note on how several candidates raise the probability of a wrong decision."""
    if len(candidates) > 1 and not shared:
        yield (
            f"Each of {len(candidates)} candidates ships with probability {alpha:.0%} if its true loss equals the margin; for any of them, it "
            f"is up to {min(1.0, alpha * len(candidates)):.0%}; familywise: true divides {alpha:.0%} among them."
        )
