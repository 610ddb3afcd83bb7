"""Slices: whether a candidate that is good on average is bad for somebody.

A slice is the items that share a tag ("language: et").  Most slices are too small to show that nothing was lost in them, so they
cannot be asked for that; they are asked for harm: a candidate is stopped when a loss is shown in a slice, corrected for the number
of slices looked at, and its best estimate is larger than allowed.  What a slice could have shown stands beside it.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.evaluate.verdict.comparison import Pairs, Rules, change_bounds, weighted_mean
from tasks.evaluate.verdict.paired_tests import count_flips, harm_p, holm, mean_harm_p, weighted_spread
from tasks.evaluate.verdict.power import detectable_loss, detectable_mean
from tasks.shared.formats.scores import ItemScore
from tasks.shared.formats.verdict import SliceComparison


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Slices:
    """Which slices are looked at, and the loss that stops a candidate in one of them."""

    by: tuple[str, ...] = (
        "kind",
        "frequency",
        "length",
        "language",
        "group",
        "grounded",
        "category",
        "subject",
        "domain",
    )
    """Tags of the items to slice by; those that no item has are passed over.  Each one more makes harm harder to show in all."""
    margin: Annotated[float, Field(gt=0)] = 0.1
    """Loss allowed within a slice, as a multiple of one (a share) or in the measure's unit; a larger one that is shown stops the candidate."""
    min_items: Annotated[int, Field(ge=2)] = 10
    """Smaller slices are left out: no loss could be shown there after the correction."""


def slices_of(items: Sequence[ItemScore], dimensions: Sequence[str]) -> Iterator[tuple[str, str, list[ItemScore]]]:
    """Dimension, value and items of every slice, in the dimensions' order; a slice that holds all items is none."""
    for dimension in dimensions:
        groups: dict[str, list[ItemScore]] = {}
        for item in items:
            if dimension in item.tags:
                groups.setdefault(item.tags[dimension], []).append(item)
        for value, members in sorted(groups.items()):
            if len(members) < len(items):
                yield dimension, value, members


def compare_slice(
    dimension: str, value: str, measure: str, pairs: Pairs, margin: float, rules: Rules, looked_at: int
) -> SliceComparison:
    """One measure within one slice; `p_holm` and `harmed` are set once all slices are known (`correct_slices`).

    looked_at: how many slices are looked at; what one of them can show after the correction shrinks with it.
    """
    bounds = change_bounds(pairs, rules)
    if pairs.measure.binary and not pairs.clustered:
        flips, p = count_flips(*pairs.right), harm_p(*pairs.right)
        detectable = detectable_loss(flips.items, flips.rate, rules.alpha / looked_at, rules.power)
    else:
        gains, weights = pairs.grouped(pairs.gains)
        spread, p = weighted_spread(gains, weights), mean_harm_p(gains, weights, rules.resamples, rules.seed)
        detectable = detectable_mean(spread.deviation, spread.items, rules.alpha / looked_at, rules.power, pairs.reach)
    return SliceComparison(
        dimension=dimension, value=value, measure=measure, n=len(pairs.baseline),
        baseline=weighted_mean(pairs.baseline, pairs.weights), candidate=weighted_mean(pairs.candidate, pairs.weights),
        difference=bounds.value, low=bounds.low, high=bounds.high, p=p, p_holm=p, margin=margin, detectable=detectable, harmed=False,
    )  # fmt: skip


def correct_slices(found: Sequence[SliceComparison], alpha: float) -> list[SliceComparison]:
    """The same with Holm's correction over all slices of the candidate.

    harmed: a loss is shown after the correction, and its best estimate is beyond what is allowed.
    """
    adjusted = holm([item.p for item in found])
    return [
        item.model_copy(update={"p_holm": p, "harmed": p <= alpha and item.difference <= -item.margin})
        for item, p in zip(found, adjusted, strict=True)
    ]
