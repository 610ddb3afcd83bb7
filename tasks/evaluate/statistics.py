"""Statistics of paired right/wrong answers: flips, McNemar's test, bootstrap intervals, what a test of n items can tell."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

RIGHT = Sequence[bool]
"""One entry per item, in the same item order for both models."""


@dataclass(frozen=True)
class Interval:
    """A value with its bounds."""

    value: float
    low: float
    high: float


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


def count_flips(baseline: RIGHT, candidate: RIGHT) -> Flips:
    """Flips over (n,) paired items.  Raises ValueError if the lengths differ or there is no item."""
    if not baseline:
        raise ValueError("no items")
    pairs = list(zip(baseline, candidate, strict=True))
    return Flips(sum(b and not c for b, c in pairs), sum(c and not b for b, c in pairs), len(pairs))


def mcnemar_p(flips: Flips) -> float:
    """Two-sided exact p-value of McNemar's test (1947): 1.0 when nothing flipped."""
    from statsmodels.stats.contingency_tables import mcnemar

    return min(1.0, float(mcnemar([[0, flips.to_wrong], [flips.to_right, 0]], exact=True).pvalue))


def wilson(right: int, items: int, alpha: float = 0.05) -> Interval:
    """Proportion with Wilson's score interval (1927) at confidence 1 - alpha, two-sided."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(right, items, alpha=alpha, method="wilson")
    return Interval(right / items, min(max(0.0, float(low)), right / items), max(min(1.0, float(high)), right / items))


def unseen_loss(items: int, alpha: float) -> float:
    """Upper one-sided 1 - alpha bound of a share that showed up in none of n items (Clopper and Pearson 1934)."""
    return float(1.0 - alpha ** (1.0 / items))


def difference_interval(baseline: RIGHT, candidate: RIGHT, alpha: float, resamples: int, seed: int) -> Interval:
    """Candidate - baseline accuracy; each bound is a one-sided 1 - alpha bound (together: confidence 1 - 2 alpha).

    Paired bootstrap over items, bias-corrected and accelerated (Efron 1987).  A bootstrap cannot see what the sample does not
    hold: with no item lost it would put the bound at or above zero however few the items.  So without a loss the lower bound is
    at most minus `unseen_loss`, and without any flip the interval is plus and minus that.
    """
    import numpy as np

    flips = count_flips(baseline, candidate)
    change = np.asarray(candidate, dtype=float) - np.asarray(baseline, dtype=float)  # (n,), -1, 0 or 1
    value = float(change.mean())
    low, high = _bootstrap((change,), lambda x, axis=-1: x.mean(axis=axis), value, alpha, resamples, seed)
    unseen = unseen_loss(flips.items, alpha)
    if flips.to_wrong == 0:
        low = min(low, -unseen)
        high = max(high, unseen) if flips.to_right == 0 else high
    return Interval(value, max(-1.0, low), min(1.0, high))


def retention_interval(baseline: RIGHT, candidate: RIGHT, alpha: float, resamples: int, seed: int) -> Interval | None:
    """Candidate / baseline accuracy with paired bootstrap bounds as in `difference_interval`; None if the baseline has nothing right."""
    import numpy as np

    count_flips(baseline, candidate)
    if not any(baseline):
        return None
    before, after = np.asarray(baseline, dtype=float), np.asarray(candidate, dtype=float)

    def ratio(b: "np.ndarray", c: "np.ndarray", axis: int = -1) -> "np.ndarray":
        total = b.sum(axis=axis)
        return np.divide(
            c.sum(axis=axis), total, out=np.full_like(np.asarray(total, dtype=float), np.nan), where=total > 0
        )

    value = float(after.sum() / before.sum())
    low, high = _bootstrap((before, after), ratio, value, alpha, resamples, seed)
    return Interval(value, min(low, value), max(high, value))


def _bootstrap(
    samples: tuple, statistic: Callable, value: float, alpha: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Paired bounds by BCa; by percentiles where BCa is undefined (jackknife without spread); `value` itself for one item."""
    import numpy as np
    from scipy.stats import DegenerateDataWarning, bootstrap

    if len(samples[0]) < 2:
        return value, value
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        result = bootstrap(
            samples,
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            batch=1000,
            confidence_level=1.0 - 2.0 * alpha,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    low, high = map(float, result.confidence_interval)
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    drawn = result.bootstrap_distribution[np.isfinite(result.bootstrap_distribution)]
    return float(np.quantile(drawn, alpha)), float(np.quantile(drawn, 1.0 - alpha))


def non_inferior(difference: Interval, margin: float) -> bool:
    """Whether the one-sided lower bound of candidate - baseline lies above -margin."""
    return difference.low > -margin


def minimum_detectable(items: int, discordance: float, alpha: float, power: float) -> float:
    """Smallest margin at which an equal candidate passes with probability `power` (Nam 1997, normal approximation).

    discordance: expected share of items that flip, half of them each way.  Unknown at planning; ask for it honestly.
    """
    from scipy.stats import norm

    return float((norm.ppf(1.0 - alpha) + norm.ppf(power)) * math.sqrt(discordance / items))
