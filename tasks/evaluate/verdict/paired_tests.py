"""Tests on paired items: McNemar, sign flips, Holm's correction, and effect sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Side = Literal["two-sided", "less"]
ELEMENTS = 1_000_000
"""Numbers held in memory at once during sign flips."""


@dataclass(frozen=True)
class Flips:
    """Flip counts: right to wrong, wrong to right, and the number of items."""

    to_wrong: int
    to_right: int
    items: int

    @property
    def rate(self) -> float:
        """Share of items that flipped, in either direction."""
        return (self.to_wrong + self.to_right) / self.items


def count_flips(baseline: Sequence[bool], candidate: Sequence[bool]) -> Flips:
    """Return flip counts of (n,) paired items.

    Raises ValueError if the lengths differ or there is no item.
    """
    if len(baseline) == 0:
        raise ValueError("no items")
    pairs = list(zip(baseline, candidate, strict=True))
    return Flips(sum(bool(b and not c) for b, c in pairs), sum(bool(c and not b) for b, c in pairs), len(pairs))


def mcnemar_p(flips: Flips) -> float:
    """Two-sided exact p-value of McNemar's test (1947); 1.0 without flips."""
    from statsmodels.stats.contingency_tables import mcnemar

    return min(1.0, float(mcnemar([[0, flips.to_wrong], [flips.to_right, 0]], exact=True).pvalue))


def mcnemar_loss_p(baseline: Sequence[bool], candidate: Sequence[bool]) -> float:
    """One-sided exact McNemar p-value of "the candidate is not worse" (McNemar 1947).

    Small if the candidate lost more items than it gained.
    """
    from scipy.stats import binom

    flips = count_flips(baseline, candidate)
    return float(binom.sf(flips.to_wrong - 1, flips.to_wrong + flips.to_right, 0.5))


def sign_flip_p(differences: Sequence[float], weights: Sequence[float], resamples: int, seed: int) -> float:
    """Two-sided p-value of interchangeable models, by random sign flips (Fisher 1935).

    differences, weights: (n,).  The statistic is the weighted mean.  All sign patterns if there are at most `resamples`, else random
    ones; 1.0 if nothing differs.
    """
    return _sign_flips(differences, weights, resamples, seed, "two-sided")


def sign_flip_loss_p(differences: Sequence[float], weights: Sequence[float], resamples: int, seed: int) -> float:
    """One-sided sign-flip p-value of "the candidate is not worse".

    differences: (n,), positive in favor of the candidate.  Exact if equally good models differ symmetrically; otherwise asymptotic.
    """
    return _sign_flips(differences, weights, resamples, seed, "less")


def _sign_flips(
    differences: Sequence[float], weights: Sequence[float], resamples: int, seed: int, alternative: Side
) -> float:
    import numpy as np
    from scipy.stats import permutation_test

    moved = np.asarray(differences, dtype=float) * np.asarray(weights, dtype=float)
    moved = moved[moved != 0.0]  # zeros stay zero under either sign
    if not moved.size:
        return 1.0
    if moved.size == 1:  # scipy refuses a single value: enumerate its two signs
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
    """Return Holm's (1979) adjusted p-values, in the given order."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def effect_size(differences: Sequence[float], weights: Sequence[float], binary: bool) -> float:
    """Standardized effect size; positive in favor of the candidate, 0.0 if nothing differs.

    differences: (n,), candidate - baseline in the better direction.  binary (-1, 0 or 1): Cohen's g (1988, ch. 5), the share of flips
    in favor of the candidate minus 0.5, in -0.5..0.5.  Otherwise Cohen's d_z: mean / standard deviation.
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
    """Standard deviation of a weighted mean's items, and their effective number.

    The standard error of the mean is deviation / sqrt(items).
    """

    deviation: float
    items: float


def weighted_spread(values: Sequence[float], weights: Sequence[float]) -> Spread:
    """Spread of (n,) values around their weighted mean.

    items: Kish's (1965) effective sample size.  The deviation is 0.0 for a single value.
    """
    import numpy as np

    value, weight = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    items = float(weight.sum() ** 2 / (weight**2).sum())
    if value.size < 2:
        return Spread(0.0, items)
    residual = weight * (value - np.average(value, weights=weight))  # (n,)
    error = float((residual**2).sum()) * value.size / (value.size - 1) / float(weight.sum()) ** 2
    return Spread(float((error * items) ** 0.5), items)
