"""Read loss curves and block influence from model folders; errors name the line."""

import csv
from collections.abc import Iterator
from math import isfinite
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tasks.shared.errors import DataError


class Curve(BaseModel):
    """One logged step of training; a loss is None if it was not measured at this step."""

    model_config = ConfigDict(frozen=True)
    step: int
    epoch: float | None
    train_loss: float | None
    validation_loss: float | None


class Layer(BaseModel):
    """One block of the source model.

    influence: 1 - cosine of the block's input and output.  dropped: True if pruning removed the block.
    """

    model_config = ConfigDict(frozen=True)
    layer: int
    influence: float | None
    dropped: bool


def read_number(cell: str | None, where: str) -> float | None:
    """Parse a number; None for a blank, NaN or infinity.  Raises DataError for other text."""
    shown = (cell or "").strip()
    if not shown:
        return None
    try:
        value = float(shown)
    except ValueError as error:
        raise DataError(where, repr(shown), "a number or a blank") from error
    return value if isfinite(value) else None


def read_table(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a CSV file, each with its place for messages; none without a file.

    Raises DataError for missing columns.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in needed if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(
                str(path),
                f"columns {reader.fieldnames}",
                f"also {', '.join(missing)}",
                "rerun the step that writes it",
            )
        for row in reader:
            yield f"{path}:{reader.line_num}", row


def read_loss(folder: Path) -> list[Curve]:
    """Read the loss curve of a model folder (loss.csv), sorted by step; empty without a file."""
    points = []
    for where, row in read_table(folder / "loss.csv", ("step", "train_loss", "validation_loss")):
        step = read_number(row["step"], where)
        if step is None:
            raise DataError(where, "no step", "the number of the training step")
        train, validation = read_number(row["train_loss"], where), read_number(row["validation_loss"], where)
        points.append(
            Curve(
                step=int(step), epoch=read_number(row.get("epoch"), where), train_loss=train, validation_loss=validation
            )
        )
    return sorted(points, key=lambda point: point.step)


def read_influence(folder: Path) -> list[Layer]:
    """Read the block influence of a pruned model's source (influence.csv), sorted by layer.

    Empty without a file.
    """
    layers = []
    for where, row in read_table(folder / "influence.csv", ("layer", "influence", "dropped")):
        layer = read_number(row["layer"], where)
        if layer is None:
            raise DataError(where, "no layer", "the number of the block")
        dropped = row["dropped"].strip().lower() in ("1", "1.0", "true", "yes")
        layers.append(Layer(layer=int(layer), influence=read_number(row["influence"], where), dropped=dropped))
    return sorted(layers, key=lambda layer: layer.layer)
