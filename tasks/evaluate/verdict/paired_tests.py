"""Tests of paired items: who flipped, is there a difference at all, is there harm, and how large is it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Side = Literal["two-sided", "less"]
ELEMENTS = 1_000_000
"""Numbers held at once while signs are flipped."""


@dataclass(frozen=True)
class Flips:
    """Items on which the candidate differs: baseline right and candidate wrong, and the other way."""

    to_wrong: int
    to_right: int
    items: int

    @property
    def rate(self) -> float:
        """Share of items that flipped, either way."""
        return (self.to_wrong + self.to_right) / self.items


def count_flips(baseline: Sequence[bool], candidate: Sequence[bool]) -> Flips:
    """Flips over (n,) paired items, in the same order for both.  Raises ValueError if the lengths differ or there is no item."""
    if len(baseline) == 0:
        raise ValueError("no items")
    pairs = list(zip(baseline, candidate, strict=True))
    return Flips(sum(bool(b and not c) for b, c in pairs), sum(bool(c and not b) for b, c in pairs), len(pairs))


def mcnemar_p(flips: Flips) -> float:
    """Two-sided exact p-value of McNemar's test (1947): 1.0 when nothing flipped."""
    from statsmodels.stats.contingency_tables import mcnemar

    return min(1.0, float(mcnemar([[0, flips.to_wrong], [flips.to_right, 0]], exact=True).pvalue))


def harm_p(baseline: Sequence[bool], candidate: Sequence[bool]) -> float:
    """One-sided exact McNemar p-value of "the candidate is not worse": small when it lost more items than it gained."""
    from scipy.stats import binom

    flips = count_flips(baseline, candidate)
    return float(binom.sf(flips.to_wrong - 1, flips.to_wrong + flips.to_right, 0.5))


def sign_flip_p(differences: Sequence[float], weights: Sequence[float], resamples: int, seed: int) -> float:
    """Two-sided p-value of "the models are interchangeable on every item" (Fisher 1935): signs of (n,) differences flipped at random.

    The statistic is the weighted mean.  All sign patterns where there are at most `resamples` of them; 1.0 when nothing differs.
    """
    return _sign_flips(differences, weights, resamples, seed, "two-sided")


def mean_harm_p(differences: Sequence[float], weights: Sequence[float], resamples: int, seed: int) -> float:
    """One-sided p-value of "the candidate is not worse"; differences (n,) are in favor of the candidate.

    Sign flips as in `sign_flip_p`: exact if models that are equally good differ symmetrically; otherwise only for many items.
    """
    return _sign_flips(differences, weights, resamples, seed, "less")


def _sign_flips(
    differences: Sequence[float], weights: Sequence[float], resamples: int, seed: int, alternative: Side
) -> float:
    import numpy as np
    from scipy.stats import permutation_test

    moved = np.asarray(differences, dtype=float) * np.asarray(weights, dtype=float)
    moved = moved[moved != 0.0]  # the others stay zero under either sign
    if not moved.size:
        return 1.0
    if moved.size == 1:  # of which scipy makes no sample: one of two signs, or both
        return 0.5 if alternative == "less" and moved[0] < 0 else 1.0
    found = permutation_test(
        (moved,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, ELEMENTS // moved.size),
        alternative=alternative,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given: each below alpha only if chance of any false one is at most alpha."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def effect_size(differences: Sequence[float], weights: Sequence[float], binary: bool) -> float:
    """How one-sided the differences are; above zero in favor of the candidate, 0.0 where nothing differs.

    differences: (n,), candidate - baseline in the better direction.  Binary (-1, 0 or 1): Cohen's g (1988, ch. 5), the share of flips
    in favor of the candidate less one half, so between -0.5 and 0.5.  Amounts: Cohen's d_z, mean / standard deviation.
    """
    import numpy as np

    change = np.asarray(differences, dtype=float)
    if binary:
        flips = float(np.abs(change).sum())
        return float(change.sum()) / (2.0 * flips) if flips else 0.0
    spread = weighted_spread(differences, weights)
    return float(np.average(change, weights=weights)) / spread.deviation if spread.deviation else 0.0


@dataclass(frozen=True)
class Spread:
    """Standard deviation of a weighted mean's items, and how many equally weighted ones they are worth.

    The standard error of the mean is deviation / sqrt(items).
    """

    deviation: float
    items: float


def weighted_spread(values: Sequence[float], weights: Sequence[float]) -> Spread:
    """Of (n,) values, around their weighted mean.  Kish's (1965) effective number of items; deviation 0.0 for a single one."""
    import numpy as np

    value, weight = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    items = float(weight.sum() ** 2 / (weight**2).sum())
    if value.size < 2:
        return Spread(0.0, items)
    residual = weight * (value - np.average(value, weights=weight))  # (n,)
    error = float((residual**2).sum()) * value.size / (value.size - 1) / float(weight.sum()) ** 2
    return Spread(float((error * items) ** 0.5), items)
