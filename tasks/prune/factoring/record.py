"""Record of matrices whose rank was reduced: figures, log line and table."""

import csv
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tasks.shared.technique import Metrics

log = logging.getLogger(__name__)
RANKS_FILE = "ranks.csv"


class Reduced(NamedTuple):
    """A matrix after its reduction.

    rank: directions of its output that stay; 0 if it stays as it is.
    energy: share of the spectrum's squares that they have.
    error: squared error of its outputs on the calibration rows, as a share of their squares.
    """

    shape: tuple[int, int]
    rank: int
    energy: float
    error: float

    @property
    def held(self) -> int:
        """Weights of its two factors, or its own."""
        outputs, inputs = self.shape
        return self.rank * (outputs + inputs) or outputs * inputs


def figures_of(found: Mapping[str, Reduced], parameters: int) -> Metrics:
    """Figures of a reduction.

    parameters: of the whole model.
    """
    cut = [each for each in found.values() if each.rank]
    saved = sum(each.shape[0] * each.shape[1] - each.held for each in cut)
    return {
        "reduced_matrices": len(cut), "whole_matrices": len(found) - len(cut),
        "rank_min": min(each.rank for each in cut), "rank_max": max(each.rank for each in cut),
        "energy_kept_min": min(each.energy for each in cut),
        "output_error": sum(each.error for each in found.values()) / len(found),
        "parameters": parameters, "factored_parameters": parameters - saved,
        "factored_share": round((parameters - saved) / parameters, 4),
    }  # fmt: skip


def tell(figures: Metrics) -> None:
    """Log what was reduced, and that nothing is saved."""
    log.info(
        "%s matrices have rank %s to %s, %s stay as they are.  For study: the dense products are stored, since stock loaders take no "
        "factors, so the file is as large as before (%.1f MB) and computes no faster.  As two factors each, in a runtime of one's own, the model "
        "would have %s instead of %s parameters (%.1f %%)",
        figures["reduced_matrices"], figures["rank_min"], figures["rank_max"], figures["whole_matrices"], float(figures["size_bytes"]) / 1e6,
        f"{figures['factored_parameters']:,}", f"{figures['parameters']:,}", 100 * float(figures["factored_share"]),
    )  # fmt: skip


def write_ranks(path: Path, found: Mapping[str, Reduced]) -> None:
    """Write one line per matrix; the rank is 0 where it stays as it is."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["matrix", "out", "in", "rank", "energy", "output_error"])
        writer.writerows(_lines(found))


def _lines(found: Mapping[str, Reduced]) -> Iterator[tuple[object, ...]]:
    for name, each in found.items():
        yield name, *each.shape, each.rank, f"{each.energy:.6f}", f"{each.error:.6f}"
