"""Confidence intervals of means and ratios: Wilson, Student's t, BCa, studentized bootstrap."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.evaluate.verdict.exact_bounds import Interval, difference_bounds
from tasks.evaluate.verdict.paired_tests import weighted_spread
from tasks.evaluate.verdict.pairs import by_group

if TYPE_CHECKING:
    import numpy as np

Values = Sequence[float]
Bounds = tuple[float, float]
ELEMENTS = 65_536
"""Item indices drawn at once: what fits a processor's cache."""
FEW_KINDS = 4
"""Items per distinct value pair from which resamples are drawn as multinomial counts."""
ROUNDING = 1e-9
"""Relative size below which a difference is rounding error."""


def wilson(right: int, items: int, alpha: float = 0.05) -> Interval:
    """Proportion with Wilson's two-sided score interval (1927) at confidence 1 - alpha."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(right, items, alpha=alpha, method="wilson")
    return Interval(right / items, min(max(0.0, float(low)), right / items), max(min(1.0, float(high)), right / items))


def score_bounds(
    values: Values, weights: Values, binary: bool, alpha: float = 0.05, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Weighted mean of a model's values with a two-sided 1 - alpha interval.

    values, weights: (n,).  Wilson's interval for equally weighted right/wrong answers, otherwise `mean_bounds`.
    Raises ValueError if there is no item.
    """
    if len(values) == 0:
        raise ValueError("no items")
    if binary and len(set(weights)) == 1:
        return wilson(int(sum(values)), len(values), alpha)
    least, most = (0.0, 1.0) if binary else (float(min(values)), float(max(values)))
    center, reach = (least + most) / 2.0, (most - least) / (2.0 if binary else 1.0)
    found = mean_bounds([value - center for value in values], weights, alpha / 2.0, resamples, seed, reach)
    return Interval(center + found.value, center + found.low, center + found.high)


def mean_bounds(
    differences: Values, weights: Values, alpha: float, resamples: int, seed: int, reach: float
) -> Interval:
    """Weighted mean of paired differences, with one-sided 1 - alpha bounds.

    The widest of three: Student's t, BCa (Efron 1987) and the studentized bootstrap (Hall 1988), items resampled with their weights.
    BCa alone misses rare large losses far too often (docs/decisions/0010-the-bound-that-decides.md).

    differences: (n,), positive in favor of the candidate.  reach: largest change one item can make (the measure's range, or the
    observed one); it limits the bounds.  Where no item is worse, the lower bound allows for losses that n items can miss.
    Raises ValueError if there is no item.
    """
    import numpy as np

    if len(differences) == 0:
        raise ValueError("no items")
    change, weight = np.asarray(differences, dtype=float), np.asarray(weights, dtype=float)
    value = float(np.average(change, weights=weight))
    low, high = _widest(ratio_bounds(weight * change, weight, alpha, resamples, seed))
    unseen = unseen_share(weighted_spread(differences, weights).items, alpha)
    same = bool((change == change[0]).all())
    if same or not (change < 0.0).any():
        low = min(low, (1.0 - unseen) * value - unseen * reach)
    if same:
        high = max(high, (1.0 - unseen) * value + unseen * reach)
    return Interval(value, float(max(low, min(-reach, value))), float(min(high, max(reach, value))))


def grouped_bounds(
    baseline: Sequence[bool],
    candidate: Sequence[bool],
    weights: Values,
    groups: Sequence[str],
    alpha: float,
    resamples: int,
    seed: int,
) -> Interval:
    """Return `difference_bounds` for dependent items, such as wordings of one question.

    weights: (n,) of the items in the mean.  groups: (n,) cluster labels.  At least as far from the mean as the exact bound, which assumes
    independent items, and as `mean_bounds` over groups; with each item in its own group, equal to `difference_bounds`.
    """
    exact = difference_bounds(baseline, candidate, alpha)
    if len(set(groups)) == len(groups):
        return exact
    changes = [float(after) - float(before) for before, after in zip(baseline, candidate, strict=True)]
    found = mean_bounds(*by_group(changes, weights, groups), alpha, resamples, seed, reach=1.0)
    moved = found.value - exact.value  # an item's weight depends on its group
    return Interval(
        found.value, max(-1.0, min(exact.low + moved, found.low)), min(1.0, max(exact.high + moved, found.high))
    )


def retention_bounds(
    baseline: Values, candidate: Values, weights: Values, alpha: float, resamples: int, seed: int
) -> Interval | None:
    """Ratio candidate / baseline of weighted means, with one-sided 1 - alpha bounds.

    The wider of BCa and Student's t of the ratio of sums.  For equally weighted right/wrong answers at least as wide as the exact bounds
    of the difference over the baseline's mean: 10 items without a flip do not prove 100 %.
    Returns None unless the baseline's mean is above zero.
    """
    import numpy as np

    before, after, weight = (np.asarray(column, dtype=float) for column in (baseline, candidate, weights))
    total = float((weight * before).sum())
    if total <= 0.0:
        return None
    value = float((weight * after).sum()) / total
    low, high = _widest(ratio_bounds(weight * after, weight * before, alpha, resamples, seed)[:2])
    binary = np.isin(before, (0.0, 1.0)).all() and np.isin(after, (0.0, 1.0)).all()
    if binary and (weight == weight[0]).all():
        exact, share = difference_bounds(baseline, candidate, alpha), float(before.mean())  # type: ignore[arg-type]
        low, high = min(low, 1.0 + exact.low / share), max(high, 1.0 + exact.high / share)
    return Interval(value, max(0.0, low) if value >= 0.0 else low, high)


def unseen_share(items: float, alpha: float) -> float:
    """Upper one-sided 1 - alpha bound of a share observed in 0 of n items.

    Source: Clopper and Pearson 1934.
    """
    return float(1.0 - alpha ** (1.0 / items))


def _widest(bounds: Sequence[Bounds]) -> Bounds:
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def ratio_bounds(
    numerator: "np.ndarray", denominator: "np.ndarray", alpha: float, resamples: int, seed: int
) -> tuple[Bounds, Bounds, Bounds]:
    """One-sided 1 - alpha bounds of sum(numerator) / sum(denominator) over (n,) items.

    Returns Student's t, BCa, and studentized bootstrap bounds.  The last are infinite if more than alpha of the resamples have no
    spread.
    """
    import numpy as np
    from scipy.stats import t

    items, total = len(numerator), float(denominator.sum())
    value = float(numerator.sum()) / total
    rest = numerator - value * denominator  # (n,), about zero, so that little is lost to rounding
    error = float(_ratio(_moments(rest, denominator).sum(axis=0), items)[1]) if items > 1 else 0.0
    if error <= ROUNDING * abs(value):
        return ((value, value),) * 3
    worth = total**2 / float((denominator**2).sum())
    student = float(t.isf(alpha, max(1.0, worth - 1.0))) * error
    moved, errors = _ratio(_resample(rest, denominator, resamples, seed), items)  # (resamples,) each
    moved, errors = moved[np.isfinite(moved)], errors[np.isfinite(moved)]
    pivots = moved / np.maximum(errors, ROUNDING * error)
    pivots = np.where(errors > ROUNDING * error, pivots, np.where(moved == 0.0, 0.0, np.copysign(np.inf, moved)))
    last, first = np.quantile(pivots, (1.0 - alpha, alpha), method="inverted_cdf") * error
    low, high = np.quantile(moved, _bca_levels(rest, denominator, moved, alpha))
    return (
        (value - student, value + student),
        (value + float(low), value + float(high)),
        (value - float(last), value - float(first)),
    )


def _moments(rest: "np.ndarray", denominator: "np.ndarray") -> "np.ndarray":
    import numpy as np

    return np.stack([rest, denominator, rest**2, rest * denominator, denominator**2], axis=-1)  # (n, 5)


def _ratio(sums: "np.ndarray", items: int) -> "tuple[np.ndarray, np.ndarray]":
    """Ratio of sums and its first-order standard error; NaN for a zero denominator.

    sums: (..., 5), of `_moments`.
    """
    import numpy as np

    rest, total, squares, crossed, totals = np.moveaxis(sums, -1, 0)
    total = np.where(total > 0.0, total, np.nan)
    ratio = rest / total
    variance = (squares - 2.0 * ratio * crossed + ratio**2 * totals) * items / (items - 1)
    return ratio, np.sqrt(np.maximum(variance, 0.0)) / total


def _resample(rest: "np.ndarray", denominator: "np.ndarray", resamples: int, seed: int) -> "np.ndarray":
    """Bootstrap sums of `_moments`, (resamples, 5), over n items drawn with replacement.

    Equal items are drawn as multinomial counts.
    """
    import numpy as np

    draw, items = np.random.default_rng(seed), len(rest)
    kinds, counts = np.unique(np.stack([rest, denominator], axis=-1), axis=0, return_counts=True)
    moments = _moments(kinds[:, 0], kinds[:, 1])
    if len(kinds) * FEW_KINDS <= items:
        return draw.multinomial(items, counts / items, size=resamples) @ moments
    moments, drawn = _moments(rest, denominator), []
    for start in range(0, resamples, max(1, ELEMENTS // items)):
        rows = min(resamples - start, max(1, ELEMENTS // items))
        cells = draw.integers(items, size=(rows, items)) + items * np.arange(rows)[:, None]
        drawn.append(np.bincount(cells.ravel(), minlength=rows * items).reshape(rows, items) @ moments)
    return np.concatenate(drawn)


def _bca_levels(rest: "np.ndarray", denominator: "np.ndarray", moved: "np.ndarray", alpha: float) -> "np.ndarray":
    """Quantile levels of the resampled ratios that give BCa's bounds (Efron 1987, section 6).

    rest sums to zero, so `moved` is centered at zero.
    """
    import numpy as np
    from scipy.stats import norm

    below = float((moved < 0.0).mean() + (moved <= 0.0).mean()) / 2.0
    bias = float(norm.ppf(np.clip(below, 0.5 / len(moved), 1.0 - 0.5 / len(moved))))
    left = denominator.sum() - denominator
    without = np.where(left > 0.0, -rest / np.where(left > 0.0, left, 1.0), 0.0)  # (n,), the ratio without each item
    influence = without.mean() - without
    acceleration = float((influence**3).sum() / (6.0 * (influence**2).sum() ** 1.5))
    shifted = bias + norm.ppf([alpha, 1.0 - alpha])
    stretch = np.maximum(1.0 - acceleration * shifted, ROUNDING)
    return norm.cdf(bias + shifted / stretch)


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return sum(weight x value) / sum(weight)."""
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
