"""The cliff: the compression at which quality begins to fall faster than before."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log2

from tasks.shared.formats.verdict import Cliff, Comparison, Gate, ModelMeasures
from tasks.shared.text.numbers import byte_size, gap, gap_unit, times

FASTER = 2.0
"""A loss of more than so many times the trend is a cliff."""


@dataclass(frozen=True)
class Point:
    """A candidate by size and quality.

    halvings: of the baseline's size.  loss: in the measure's unit; below zero for a gain.  shown: True if a loss is proven.
    """

    name: str
    halvings: float
    loss: float
    shown: bool


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points that no smaller model, or one of their size, beats or equals.

    They come in the order of their sizes, largest first.
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.halvings, point.loss)):
        if not kept or point.loss < kept[-1].loss:
            kept.append(point)
    return kept[::-1]


def find_cliff(points: Sequence[Point], margin: float = 0.0) -> Cliff | None:
    """Return the first model of the frontier that leaves the trend of the larger ones.

    Its loss is shown, more than twice what the trend makes of its size, and above the margin.
    margin: loss that is accepted.
    The trend is the loss per halving of the larger ones, by least squares through the baseline.  One of them is needed: a single
    model has no trend.
    """
    before: list[Point] = []
    for point in frontier([point for point in points if point.halvings > 0]):
        if before:
            slope = sum(one.halvings * max(0.0, one.loss) for one in before) / sum(one.halvings**2 for one in before)
            expected = slope * point.halvings
            if point.shown and point.loss > max(margin, FASTER * expected):
                return Cliff(
                    model=point.name, times_smaller=2.0**point.halvings, loss=point.loss, expected=expected, before=before[-1].name
                )  # fmt: skip
        before.append(point)
    return None


def find_cliffs(
    baseline: str, models: Mapping[str, ModelMeasures], comparisons: Mapping[str, Comparison], gates: Mapping[str, Gate]
) -> dict[str, Cliff]:
    """Return the cliff of each measure that decides and has one."""
    whole, found = models[baseline].size_bytes, dict[str, Cliff]()
    for name, margin in ((name, gate.margin) for name, gate in gates.items() if gate.margin is not None):
        points = [
            Point(model, log2(whole / models[model].size_bytes), -result.difference, result.high < 0)
            for model, comparison in comparisons.items()
            if (result := comparison.measures.get(name)) is not None and whole > 0 and models[model].size_bytes > 0
        ]
        if (cliff := find_cliff(points, margin)) is not None:
            found[name] = cliff
    return found


def cliff_notes(
    cliffs: Mapping[str, Cliff], models: Mapping[str, ModelMeasures], gates: Mapping[str, Gate]
) -> Iterator[str]:
    """Yield a sentence per cliff."""
    for name, cliff in cliffs.items():
        measure = gates[name].measure
        yield (
            f"Cliff: {measure.title} falls off between {cliff.before} ({byte_size(models[cliff.before].size_bytes)}) and {cliff.model} "
            f"({byte_size(models[cliff.model].size_bytes)}, {times(cliff.times_smaller)} smaller), which loses "
            f"{gap(cliff.loss, measure.unit, signed=False)} {gap_unit(measure.unit)}; by the trend of the larger models it would lose "
            f"{gap(cliff.expected, measure.unit, signed=False)}."
        )
