"""The loss curve of a training, as a table."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CURVE = ("step", "epoch", "train_loss", "validation_loss")


def write_curve(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write loss.csv: the columns of CURVE, then `<term>_loss` and `<term>_gradient` per term.

    The terms' columns are absent for a single term.  A cell is blank if a step has no value.
    """
    logged = [entry for entry in history if "loss" in entry or "eval_loss" in entry]
    terms = sorted(
        {name for entry in logged for name in entry if name.endswith(("_loss", "_gradient"))} - {"eval_loss"}
    )
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*CURVE, *terms])
        for entry in logged:
            standard = [
                entry["step"],
                round(float(entry["epoch"]), 3),
                entry.get("loss", ""),
                entry.get("eval_loss", ""),
            ]
            writer.writerow([*standard, *(entry.get(name, "") for name in terms)])
