"""Loss curves and block influence that training and pruning left beside their models, read with errors that name the line."""

import csv
from collections.abc import Iterator
from math import isfinite
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tasks.shared.errors import DataError


class Curve(BaseModel):
    """One logged moment of training; None where that loss was not measured at this step."""

    model_config = ConfigDict(frozen=True)
    step: int
    epoch: float | None
    train_loss: float | None
    validation_loss: float | None


class Layer(BaseModel):
    """One block of the source model: its influence (1 - cosine of input and output) and whether it was dropped."""

    model_config = ConfigDict(frozen=True)
    layer: int
    influence: float | None
    dropped: bool


def read_number(cell: str | None, where: str) -> float | None:
    """A finite number, or None for a blank, NaN or infinity.  Raises DataError for anything else."""
    shown = (cell or "").strip()
    if not shown:
        return None
    try:
        value = float(shown)
    except ValueError as error:
        raise DataError(where, repr(shown), "a number or a blank") from error
    return value if isfinite(value) else None


def read_table(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV file with their place for messages; none when there is no file.  Raises DataError for absent columns."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        absent = [name for name in needed if name not in (reader.fieldnames or ())]
        if absent:
            raise DataError(
                str(path),
                f"columns {reader.fieldnames}",
                f"also {', '.join(absent)}",
                "run the step that writes it again",
            )
        for row in reader:
            yield f"{path}:{reader.line_num}", row


def read_loss(folder: Path) -> list[Curve]:
    """Loss curve of a model folder (loss.csv), by step; empty when it has none."""
    points = []
    for where, row in read_table(folder / "loss.csv", ("step", "train_loss", "validation_loss")):
        step = read_number(row["step"], where)
        if step is None:
            raise DataError(where, "no step", "the number of the training step")
        train, held = read_number(row["train_loss"], where), read_number(row["validation_loss"], where)
        points.append(
            Curve(step=int(step), epoch=read_number(row.get("epoch"), where), train_loss=train, validation_loss=held)
        )
    return sorted(points, key=lambda point: point.step)


def read_influence(folder: Path) -> list[Layer]:
    """Block influence of a pruned model's source (influence.csv), by layer; empty when there is none."""
    layers = []
    for where, row in read_table(folder / "influence.csv", ("layer", "influence", "dropped")):
        layer = read_number(row["layer"], where)
        if layer is None:
            raise DataError(where, "no layer", "the number of the block")
        dropped = row["dropped"].strip().lower() in ("1", "1.0", "true", "yes")
        layers.append(Layer(layer=int(layer), influence=read_number(row["influence"], where), dropped=dropped))
    return sorted(layers, key=lambda layer: layer.layer)
