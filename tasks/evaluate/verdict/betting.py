"""Anytime-valid evidence about a mean loss: the wealth of bets against "too much is lost".

A bet on items in random order multiplies its wealth by 1 + bet x (gain + margin) per item.  If the true mean gain is -margin or less, no
bet grows on average, so the wealth E of a mixture of bets reaches 1 / alpha with probability alpha at most, at any of any number of looks
(Ville 1939; Waudby-Smith and Ramdas 2023, arXiv 2010.09686).  The same holds for answers (gains of -1, 0, 1), for amounts in a known range,
and for groups of dependent items as one unit each.  Bets are fixed before the first item, so no look can choose among them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SPREAD = (0.0, 0.01, 0.02, 0.04, 0.08, 0.16)
"""Shares of flips that half of the wealth is prepared for, besides the planned one."""
LOSS_BETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
"""Bets that show a loss, or a gain, of any size."""
LIMIT = 1.0 - 1e-6
"""Largest bet, as a share of the one that a single complete loss would ruin."""
PRECISION = 1e-6
"""Of a bound, rounded outward."""


@dataclass(frozen=True)
class Bets:
    """A mixture of bets, fixed in advance.

    sizes: (k,) shares of wealth at stake per unit of gain, at least 0.  weights: (k,) initial wealth of each; they sum to 1.
    """

    sizes: tuple[float, ...]
    weights: tuple[float, ...]


EQUAL_LOSS_BETS = Bets(LOSS_BETS, (1.0 / len(LOSS_BETS),) * len(LOSS_BETS))


@lru_cache(maxsize=256)
def margin_bets(margin: float, planned: float) -> Bets:
    """Return the bets against a loss of `margin`.

    Half of the wealth is for the planned share of flips, half is spread over `SPREAD`.

    margin, planned: between 0 and 1, as shares of the range of gains.  Each bet is growth-optimal for an equal candidate with its share of flips.
    """
    sizes = tuple(growth_optimal(margin, flips) for flips in (planned, *SPREAD))
    return Bets(sizes, (0.5, *(0.5 / len(SPREAD),) * len(SPREAD)))


def growth_optimal(margin: float, flips: float) -> float:
    """Bet with the largest mean log growth if a share of `flips` changes, half of it each way."""
    from scipy.optimize import brentq

    most = LIMIT / (1.0 - margin)
    way = flips / 2.0

    def slope(bet: float) -> float:
        better, worse, same = 1.0 + margin, 1.0 - margin, margin
        return (
            way * better / (1.0 + bet * better) - way * worse / (1.0 - bet * worse) + (1.0 - flips) * same / (1.0 + bet * same)
        )  # fmt: skip

    return most if slope(most) >= 0.0 else float(brentq(slope, 0.0, most, xtol=1e-12))


def log_mixture(log_wealths: "npt.ArrayLike", weights: Sequence[float]) -> "np.ndarray":
    """Logarithm of the mixture's wealth.

    log_wealths: (..., k), of each bet if it started with wealth 1.  Returns (...).
    """
    import numpy as np

    wealths = np.asarray(log_wealths)
    most = wealths.max(axis=-1, keepdims=True)
    return np.asarray(most[..., 0] + np.log(np.exp(wealths - most) @ np.asarray(weights)))


def log_evidence(
    lost: "npt.ArrayLike", gained: "npt.ArrayLike", items: "npt.ArrayLike", margin: float, bets: Bets
) -> "np.ndarray":
    """Logarithm of the evidence that right/wrong answers lose less than `margin` on average.

    lost, gained, items: counts, broadcast together.  Depends on the counts only.
    """
    import numpy as np

    lost, gained, items = (np.asarray(part, dtype=float)[..., None] for part in (lost, gained, items))
    size = capped(bets, -margin)
    return log_mixture(
        gained * np.log1p(size * (1.0 + margin)) + lost * np.log1p(-size * (1.0 - margin)) + (items - lost - gained) * np.log1p(size * margin),
        bets.weights,
    )  # fmt: skip


def log_evidence_of(gains: "npt.ArrayLike", weights: "npt.ArrayLike", floor: float, bets: Bets) -> "np.ndarray":
    """Logarithm of the evidence that the weighted mean gain exceeds `floor`, after every unit.

    gains: (n,) between -1 and 1.  weights: (n,) between 0 and 1, known before the answers.  Returns (n,).
    Raises ValueError for gains or weights outside of their range: such evidence would be worth nothing.
    """
    import numpy as np

    gain, weight = np.asarray(gains, dtype=float), np.asarray(weights, dtype=float)
    if not ((np.abs(gain) <= 1.0).all() and ((weight >= 0.0) & (weight <= 1.0)).all()):
        raise ValueError("gains must be between -1 and 1, and weights between 0 and 1")
    moved = weight * (gain - floor)
    return log_mixture(np.cumsum(np.log1p(moved[:, None] * capped(bets, floor)), axis=0), bets.weights)


def capped(bets: Bets, floor: float) -> "np.ndarray":
    """Sizes of the bets, (k,), no larger than a complete loss allows against this floor."""
    import numpy as np

    return np.minimum(np.asarray(bets.sizes), LIMIT / (1.0 + floor))


def lowest_mean(gains: "npt.ArrayLike", weights: "npt.ArrayLike", bets: Bets, alpha: float) -> float:
    """Lower 1 - alpha bound of the weighted mean gain, valid at any number of looks.

    gains, weights: as in `log_evidence_of`, in any order.  The largest floor that the evidence exceeds: for fixed bets the evidence
    falls as the floor rises, so it agrees with the decision at the margin whose bets these are.  At least -1.
    """
    import numpy as np

    values, counts = np.unique(
        np.stack([np.asarray(gains, dtype=float), np.asarray(weights, dtype=float)]), axis=1, return_counts=True
    )

    def shown(floor: float) -> bool:
        logs = np.log1p((values[1] * (values[0] - floor))[:, None] * capped(bets, floor))
        return float(log_mixture(counts @ logs, bets.weights)) >= -math.log(alpha)

    low, high = -1.0 + PRECISION, 1.0
    if not shown(low):
        return -1.0
    while high - low > PRECISION:
        middle = (low + high) / 2.0
        low, high = (middle, high) if shown(middle) else (low, middle)
    return low


def confirmed(log_evidences: Sequence[float], alpha: float) -> list[bool]:
    """Return which candidates ship at a false discovery rate of at most alpha (e-BH).

    Holds under any dependence between the candidates.

    log_evidences: of every candidate, the smallest over its deciding measures, as it stands now; a past maximum is no e-value.
    The k candidates with the most evidence ship, for the largest k with which each has evidence of K / (k alpha) (Wang and Ramdas 2022,
    arXiv 2009.02824).
    """
    several = len(log_evidences)
    order = sorted(range(several), key=lambda place: -log_evidences[place])
    enough = [
        count
        for count, place in enumerate(order, 1)
        if log_evidences[place] >= math.log(several) - math.log(count * alpha)
    ]
    kept = set(order[: max(enough, default=0)])
    return [place in kept for place in range(several)]


def looks(units: int, batch: int) -> Iterator[int]:
    """Yield the numbers of units at each look: after every full batch, and after the last one."""
    yield from range(batch, units, batch)
    yield units
