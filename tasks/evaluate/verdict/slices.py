"""Slices: losses in parts of the test split that the average hides.

A slice is the set of items that share a tag ("language: et").  Most slices are too small to prove that nothing was lost, so the
test is for a loss: a candidate is stopped if a loss in a slice is proven, after Holm's correction for the number of slices, and its
estimate exceeds the margin.  Each slice also reports the loss that it could have detected.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.evaluate.verdict.adaptive import assess_pairs
from tasks.evaluate.verdict.comparison import Rules, adaptive_test, change_bounds, weighted_mean
from tasks.evaluate.verdict.paired_tests import count_flips, holm, mcnemar_loss_p, sign_flip_loss_p, weighted_spread
from tasks.evaluate.verdict.pairs import Pairs
from tasks.evaluate.verdict.power import detectable_loss, detectable_mean
from tasks.shared.formats.scores import ItemScore
from tasks.shared.formats.verdict import SliceComparison


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Slices:
    """Slices to test, and the loss that stops a candidate in one of them."""

    by: tuple[str, ...] = (
        "task",
        "kind",
        "frequency",
        "length",
        "language",
        "group",
        "grounded",
        "trained",
        "category",
        "subject",
        "domain",
    )
    """Tags to slice by; tags that no item has are skipped.  Each further tag makes a loss harder to prove in every slice."""
    margin: Annotated[float, Field(gt=0)] = 0.1
    """Loss allowed within a slice, as a share or in the measure's unit; a proven larger loss stops the candidate."""
    min_items: Annotated[int, Field(ge=2)] = 10
    """Smaller slices are left out: no loss could be proven there after the correction."""


def slices_of(items: Sequence[ItemScore], dimensions: Sequence[str]) -> Iterator[tuple[str, str, list[ItemScore]]]:
    """Yield dimension, value and items of every slice that does not hold all items."""
    for dimension in dimensions:
        groups: dict[str, list[ItemScore]] = {}
        for item in items:
            if dimension in item.tags:
                groups.setdefault(item.tags[dimension], []).append(item)
        for value, members in sorted(groups.items()):
            if len(members) < len(items):
                yield dimension, value, members


def compare_slice(
    dimension: str, value: str, measure: str, pairs: Pairs, margin: float, rules: Rules, slice_count: int
) -> SliceComparison:
    """Compare one measure within one slice.

    slice_count: number of slices tested; more slices mean less power in each.  `correct_slices` sets `p_holm` and `harmed` once all
    slices are compared.
    """
    found = assess_pairs(pairs, adaptive_test(rules))
    bounds = found.bounds if found else change_bounds(pairs, rules)
    if pairs.measure.binary and not pairs.clustered:
        flips, p = count_flips(*pairs.correctness), mcnemar_loss_p(*pairs.correctness)
        detectable = detectable_loss(flips.items, flips.rate, rules.alpha / slice_count, rules.power)
    else:
        gains, weights = pairs.grouped(pairs.gains)
        spread, p = weighted_spread(gains, weights), sign_flip_loss_p(gains, weights, rules.resamples, rules.seed)
        detectable = detectable_mean(
            spread.deviation, spread.items, rules.alpha / slice_count, rules.power, pairs.reach
        )
    p = found.loss_p if found else p
    return SliceComparison(
        dimension=dimension, value=value, measure=measure, n=len(pairs.baseline),
        baseline=weighted_mean(pairs.baseline, pairs.weights), candidate=weighted_mean(pairs.candidate, pairs.weights),
        difference=bounds.value, low=bounds.low, high=bounds.high, p=p, p_holm=p, margin=margin, detectable=detectable, harmed=False,
    )  # fmt: skip


def correct_slices(found: Sequence[SliceComparison], alpha: float) -> list[SliceComparison]:
    """Return the slices with p-values adjusted over all slices of the candidate (Holm 1979).

    harmed: a loss is proven after the correction, and its estimate exceeds the margin.
    """
    adjusted = holm([item.p for item in found])
    return [
        item.model_copy(update={"p_holm": p, "harmed": p <= alpha and item.difference <= -item.margin})
        for item, p in zip(found, adjusted, strict=True)
    ]
