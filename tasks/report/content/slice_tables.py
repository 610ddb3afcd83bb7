"""Slice heat map: differences from the baseline by candidate, measure and slice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tasks.report.content.report import Report
from tasks.shared.formats.verdict import SliceComparison


@dataclass(frozen=True)
class Cell:
    """One measure in one slice.

    state: harmed; thin, if a loss of the size of the margin would go undetected; else plain.
    tint: depth of the shade, from -1 (a loss of a margin or more) to 1.
    """

    result: SliceComparison
    state: Literal["harmed", "thin", "plain"]
    tint: float


@dataclass(frozen=True)
class SliceLine:
    """One slice: its value, its number of items, and a cell per measure (None: no items)."""

    value: str
    n: int
    cells: Sequence[Cell | None]


@dataclass(frozen=True)
class SliceTable:
    """Slices of one candidate by dimension."""

    candidate: str
    measures: Sequence[str]
    dimensions: dict[str, list[SliceLine]]

    def count(self, state: str) -> int:
        """Number of cells in a state."""
        lines = [line for part in self.dimensions.values() for line in part]
        return sum(cell is not None and cell.state == state for line in lines for cell in line.cells)


def slice_cell(result: SliceComparison) -> Cell:
    """Cell of a comparison, with state and tint."""
    state: Literal["harmed", "thin", "plain"] = "plain"
    if result.harmed:
        state = "harmed"
    elif result.detectable > result.margin:
        state = "thin"
    share = result.difference / result.margin if result.margin else 0.0
    return Cell(result, state, max(-1.0, min(1.0, share)))


def slice_tables(report: Report) -> list[SliceTable]:
    """Tables of all candidates that have slices.

    Measures are in the order of the gates, slices in the order of the verdict.
    """
    found = []
    for candidate in report.candidates:
        own = [row.result for row in report.slices if row.candidate == candidate]
        measures = [name for name in report.gates if any(result.measure == name for result in own)]
        lines: dict[tuple[str, str], dict[str, SliceComparison]] = {}
        for result in own:
            lines.setdefault((result.dimension, result.value), {})[result.measure] = result
        dimensions: dict[str, list[SliceLine]] = {}
        for (dimension, value), by_measure in lines.items():
            cells = [slice_cell(by_measure[name]) if name in by_measure else None for name in measures]
            items = max(result.n for result in by_measure.values())
            dimensions.setdefault(dimension, []).append(SliceLine(value, items, cells))
        if dimensions:
            found.append(SliceTable(candidate, measures, dimensions))
    return found
