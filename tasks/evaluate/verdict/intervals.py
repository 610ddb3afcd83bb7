"""Intervals of means and ratios of amounts, and of a model's own score."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.evaluate.verdict.exact_bounds import Interval, difference_bounds
from tasks.evaluate.verdict.paired_tests import weighted_spread

if TYPE_CHECKING:
    import numpy as np

Values = Sequence[float]
Bounds = tuple[float, float]
ELEMENTS = 65_536
"""Item numbers drawn at once: what a processor's cache holds."""
FEW_KINDS = 4
"""Items per different pair of numbers, from which on the pairs are counted instead."""
ROUNDING = 1e-9
"""Relative size of what is rounding error."""


def wilson(right: int, items: int, alpha: float = 0.05) -> Interval:
    """Proportion with Wilson's score interval (1927) at confidence 1 - alpha, two-sided."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(right, items, alpha=alpha, method="wilson")
    return Interval(right / items, min(max(0.0, float(low)), right / items), max(min(1.0, float(high)), right / items))


def score_bounds(
    values: Values, weights: Values, binary: bool, alpha: float = 0.05, resamples: int = 2000, seed: int = 0
) -> Interval:
    """A model's own (weighted) mean of (n,) values at confidence 1 - alpha, two-sided.

    Wilson's interval for equally weighted right/wrong answers, otherwise `mean_bounds`.  Raises ValueError for no item.
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
    """Weighted mean of (n,) paired differences; each bound is a one-sided 1 - alpha bound.

    The farthest of three bounds: Student's t, the bootstrap's BCa (Efron 1987) and the studentized bootstrap (Hall 1988), items
    resampled with their weights.  BCa alone lets rare large losses pass far too often (docs/decisions/0010-the-bound-that-decides.md).

    differences: in favor of the candidate.  reach: the most that one item can change: the range of the measure, or of what was
    seen of it.  No bound lies farther out than that, and where no item is worse the lower bound allows for the share of items that
    n could have missed.  Raises ValueError for no item.
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
    baseline: Sequence[bool], candidate: Sequence[bool], groups: Sequence[str], alpha: float, resamples: int, seed: int
) -> Interval:
    """`difference_bounds` for items that are not independent: wordings of one question, questions about one article.

    groups: (n,), which items belong together.  The farther of the exact bound, which takes every item for a draw of its own, and
    the bounds of `mean_bounds` over groups.  With each item in its own group, `difference_bounds`.
    """
    exact = difference_bounds(baseline, candidate, alpha)
    if len(set(groups)) == len(groups):
        return exact
    changes = [float(after) - float(before) for before, after in zip(baseline, candidate, strict=True)]
    means, weights = by_group(changes, [1.0] * len(changes), groups)
    found = mean_bounds(means, weights, alpha, resamples, seed, reach=1.0)
    return Interval(exact.value, min(exact.low, found.low), max(exact.high, found.high))


def by_group(values: Values, weights: Values, groups: Sequence[str]) -> tuple[list[float], list[float]]:
    """Weighted means and total weights of groups of items, in order of appearance: what to resample when groups were drawn, not items."""
    totals: dict[str, tuple[float, float]] = {}
    for value, weight, group in zip(values, weights, groups, strict=True):
        before, so_far = totals.get(group, (0.0, 0.0))
        totals[group] = before + weight * value, so_far + weight
    return [total / weight for total, weight in totals.values()], [weight for _, weight in totals.values()]


def retention_bounds(
    baseline: Values, candidate: Values, weights: Values, alpha: float, resamples: int, seed: int
) -> Interval | None:
    """Candidate / baseline of the (weighted) means; each bound is a one-sided 1 - alpha bound.  None unless the baseline is above zero.

    The farthest of BCa and Student's t of the ratio of sums.  For equally weighted right/wrong answers no narrower than the exact
    bounds of the difference, taken as a share of the baseline's own value: 10 items without a flip do not show 100 %.
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
    """Upper one-sided 1 - alpha bound of a share that showed up in none of n items (Clopper and Pearson 1934)."""
    return float(1.0 - alpha ** (1.0 / items))


def _widest(bounds: Sequence[Bounds]) -> Bounds:
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def ratio_bounds(
    numerator: "np.ndarray", denominator: "np.ndarray", alpha: float, resamples: int, seed: int
) -> tuple[Bounds, Bounds, Bounds]:
    """One-sided 1 - alpha bounds of sum(numerator) / sum(denominator) over (n,) items: Student's t, BCa, studentized bootstrap.

    The last may be infinite: more than alpha of the resamples have no spread, so that nothing is known.
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
    """Ratio of sums and its standard error to first order, from the (..., 5) sums of `_moments`; NaN for a denominator of zero."""
    import numpy as np

    rest, total, squares, crossed, totals = np.moveaxis(sums, -1, 0)
    total = np.where(total > 0.0, total, np.nan)
    ratio = rest / total
    variance = (squares - 2.0 * ratio * crossed + ratio**2 * totals) * items / (items - 1)
    return ratio, np.sqrt(np.maximum(variance, 0.0)) / total


def _resample(rest: "np.ndarray", denominator: "np.ndarray", resamples: int, seed: int) -> "np.ndarray":
    """Sums of `_moments` over n items drawn with replacement, (resamples, 5); items that are equal are counted, not drawn."""
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
    """Levels of the resampled ratios that are BCa's bounds (Efron 1987, section 6); rest sums to zero, so `moved` is about zero."""
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
