"""Records of a selection: the units kept of each layer, and their share of the importance."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.prune.selection.activations import Axis
from tasks.prune.selection.picks import Picks
from tasks.shared.technique import Plot

if TYPE_CHECKING:
    from torch import Tensor

SELECTION_FILE = "selection.json"
KEPT_PLOT = Plot(
    file="importance.csv",
    title="importance kept",
    x="layer",
    y=("kept",),
    x_label="layer",
    y_label="share of the importance that stays",
)


def write_selection(file: Path, layers: Sequence[int], picks: Sequence[Picks], energy: Sequence[float] = ()) -> None:
    """Write the kept channels, and each layer's former index, heads and neurons.

    energy: sum of squares of each channel, where it was measured.
    """
    taken = [
        {"layer": index, "heads": picks[index].heads.tolist(), "neurons": picks[index].neurons.tolist()}
        for index in layers
    ]
    content = {"hidden": picks[0].hidden.tolist(), "hidden_energy": list(energy), "layers": taken}
    file.write_text(json.dumps(content), encoding="utf-8")


def write_kept(file: Path, scores: "Mapping[Axis, Sequence[Tensor]]", picks: Sequence[Picks]) -> list[float]:
    """Write each layer's share of the importance that stays, and return the shares.

    scores: (units,) per layer, by axis; several axes are added up.  A row beyond the layers is the head's.
    picks: units kept, by layer; the head's are those of the last layer.
    A layer without any importance counts as kept whole.
    """
    sums = []
    for row in range(max(map(len, scores.values()))):
        pick = picks[min(row, len(picks) - 1)]
        part = sum(float(values[row][getattr(pick, axis)].sum()) for axis, values in scores.items())
        sums.append((part, sum(float(values[row].sum()) for values in scores.values())))
    shares = [part / whole if whole > 0 else 1.0 for part, whole in sums]
    write_shares(file, dict(enumerate(shares)))
    return shares


def write_shares(file: Path, shares: Mapping[int, float]) -> None:
    """Write the share of the importance that stays, by layer."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["layer", "kept"])
        writer.writerows([layer, f"{share:.6f}"] for layer, share in shares.items())
