"""Exact probabilities of the answers of an adaptive test, look by look."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from tasks.evaluate.verdict.betting import EQUAL_LOSS_BETS, log_evidence, looks, margin_bets

if TYPE_CHECKING:
    import numpy as np

BATCH = 16
"""Items between two looks."""
MOST_LOOKS = 12
"""Looks of a plan; more items are planned in larger batches."""
TAIL = 1e-10
"""Probability of counts that are left out, per look and side; counted as undecided."""
MOST_ITEMS = 100_000
"""Largest number of items that `items_needed` looks at."""


@dataclass(frozen=True)
class Rules:
    """An adaptive test of one measure.

    margin: allowed loss.  planned: share of flips that the bets expect.  alpha: error probability under any number of looks.
    """

    margin: float
    planned: float
    alpha: float = 0.05


@dataclass(frozen=True)
class Look:
    """State of many tests after so many items: shares that have answered yes and no by then."""

    items: int
    yes: float
    no: float


def follow(rules: Rules, p_lost: float, p_gained: float, most: int, batch: int = BATCH) -> Iterator[Look]:
    """Yield every look of a test of at most `most` items.

    p_lost, p_gained: true probabilities per item of a flip to wrong and to right.
    The distribution of counts moves from look to look; tables that decide leave it.
    """
    import numpy as np
    from scipy.signal import convolve

    chances, start = np.ones((1, 1)), (0, 0)  # (lost, gained), from these counts on
    yes = no = 0.0
    before = 0
    for items in looks(most, batch):
        chances = np.maximum(convolve(chances, outcomes(items - before, p_lost, p_gained)), 0.0)
        chances, start = _crop(chances, start)
        before = items
        lost = np.arange(chances.shape[0])[:, None] + start[0]
        gained = np.arange(chances.shape[1]) + start[1]
        lost, gained = (
            np.minimum(lost, items),
            np.minimum(gained, np.maximum(items - lost, 0)),
        )  # impossible tables have no mass
        shown, refuted = decided(lost, gained, items, rules)
        yes, no = yes + float(chances[shown].sum()), no + float(chances[refuted].sum())
        chances[shown | refuted] = 0.0
        yield Look(items, yes, no)


def decided(lost: "np.ndarray", gained: "np.ndarray", items: int, rules: Rules) -> tuple["np.ndarray", "np.ndarray"]:
    """Return where counts answer yes, and where they answer no.

    yes: evidence of 1 / alpha that less than the margin is lost.  no: the same that something is lost, and the estimate is beyond the margin.
    """
    import numpy as np

    goal = -math.log(rules.alpha)
    lost, gained = np.broadcast_arrays(lost, gained)
    shown = log_evidence(lost, gained, items, rules.margin, margin_bets(rules.margin, rules.planned)) >= goal
    harmed = log_evidence(gained, lost, items, 0.0, EQUAL_LOSS_BETS) >= goal
    return shown, ~shown & harmed & (lost - gained >= rules.margin * items - 1e-9)


@lru_cache(maxsize=64)
def outcomes(items: int, p_lost: float, p_gained: float) -> "np.ndarray":
    """Probabilities of (lost, gained) among so many items, cut where they are negligible."""
    import numpy as np
    from scipy.stats import binom

    lost = np.arange(int(binom.isf(TAIL, items, p_lost)) + 1)
    gained = np.arange(int(binom.isf(TAIL, items, p_gained)) + 1)
    rest = p_gained / (1.0 - p_lost) if p_lost < 1.0 else 0.0
    return np.asarray(binom.pmf(lost, items, p_lost)[:, None] * binom.pmf(gained, (items - lost)[:, None], rest))


def _crop(chances: "np.ndarray", start: tuple[int, int]) -> tuple["np.ndarray", tuple[int, int]]:
    """Leave out outer counts with negligible probability."""
    import numpy as np

    for axis in (0, 1):
        kept = np.flatnonzero(chances.sum(axis=1 - axis) > TAIL)
        first, last = (int(kept[0]), int(kept[-1])) if len(kept) else (0, 0)
        chances = chances[first : last + 1] if axis == 0 else chances[:, first : last + 1]
        start = (start[0] + first, start[1]) if axis == 0 else (start[0], start[1] + first)
    return chances, start


def items_needed(rules: Rules, power: float, flips: float | None = None) -> int:
    """Fewest items, in whole batches, with which an equal candidate passes at this power.

    flips: its share of flips, half of them each way; by default the planned one.  At most `MOST_ITEMS`.
    """
    flips = rules.planned if flips is None else flips
    rough = 4.0 * flips * (math.log(1.0 / rules.alpha) + 1.0) / rules.margin**2 + 100.0
    batch = BATCH * max(1, math.ceil(rough / BATCH / MOST_LOOKS))
    for look in follow(rules, flips / 2.0, flips / 2.0, MOST_ITEMS, batch):
        if look.yes >= power:
            return look.items
    return MOST_ITEMS


@lru_cache(maxsize=1024)
def smallest_margin(items: int, flips: float, planned: float, alpha: float, power: float) -> float:
    """Smallest margin, at most 1.0, that an equal candidate passes on these items.

    flips: its share of flips, half of them each way.  planned: the share that the bets expect.
    """
    batch, low, high = BATCH * max(1, math.ceil(items / BATCH / MOST_LOOKS)), 0.0, 1.0
    while high - low > 0.03 * high:
        middle = (low + high) / 2.0
        passed = 0.0
        for look in follow(Rules(middle, planned, alpha), flips / 2.0, flips / 2.0, items, batch):
            passed = look.yes
        low, high = (low, middle) if passed >= power else (middle, high)
    return high
