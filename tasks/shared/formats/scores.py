"""Scores: the results of a measuring step, per item and model.

scores.json   the measures, every model's engine and format, and figures about whole models
items.jsonl   one line per measure and item, with the value (and the answer) of every model
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from tasks.shared.errors import DataError
from tasks.shared.formats.records import Better, Figure, Machine, Record
from tasks.shared.formats.rows import Row, parse_lines

BALANCED = "label_balanced"
"""Measure that weights an item by how often its label is in the whole test split."""
RENAMED = {"intent": "label"}
"""Earlier names of measures, which recipes and stored verdicts may still use."""
SUMMARY, ITEMS = "scores.json", "items.jsonl"
Role = Literal["baseline", "candidate", "parent", "repeat", "reference"]
"""parent: a candidate that only explains (the float source of a quantized model); it is never proposed for shipping.
repeat: the baseline a second time (evaluated again, or trained again), which shows how much of a difference is noise.
reference: measured like the others but without effect on the decision."""


def current_name(name: str) -> str:
    """Return a measure's name of today."""
    return RENAMED.get(name, name)


class Measure(Record):
    """Description of a measure; a model's score is the (weighted) mean of its values over items."""

    title: str
    """Name in a sentence, such as "fact accuracy"."""
    unit: str = "share"
    """"share": shown in percent, differences in percentage points.  Otherwise the unit's name: "bits per byte", "nats"."""
    better: Better = "higher"
    binary: bool = True
    """True if every value is 0 or 1, so that items can flip."""
    against_baseline: bool = False
    """True if values are distances from the baseline, so that verdicts with different baselines cannot be compared."""


class ModelSummary(Record):
    """A model as the step measured it.

    failure: reason why it has no values (out of memory, NaN logits); empty if it has.
    """

    role: Role
    engine: str
    """Engine that ran it: "transformers", "llama.cpp", "onnxruntime", "openvino", "vllm"."""
    format: str
    """Weights as stored, such as "bfloat16 safetensors"."""
    figures: dict[str, Figure] = Field(default_factory=dict)
    failure: str = ""


class ItemScore(Record):
    """Values of one item under one measure.

    values, answers: by model; a model that failed is absent.
    """

    measure: str
    id: str
    tags: dict[str, str] = Field(default_factory=dict)
    """Slices that it belongs to: {"kind": "faq", "language": "et"}."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the item in the mean, the same for all models (bytes of a text)."""
    cluster: str = ""
    """Cluster of dependent items (phrasings of one question), which are not independent evidence; empty for none."""
    question: str = ""
    wanted: str = ""
    values: dict[str, float]
    answers: dict[str, str] = Field(default_factory=dict)


class Asking(Record):
    """Order in which a step asked rows, and how far each model got.

    rows: digest by id, in the order of asking, up to the row that the last model was asked.  counts: rows asked by model.
    available: rows of the test split.  largest: weight of its heaviest group of dependent items, by measure.
    """

    rows: dict[str, str]
    counts: dict[str, int]
    available: int
    largest: dict[str, float]


def row_digest(row: Row) -> str:
    """Return a short digest of a row's content, which binds evidence to it."""
    return hashlib.sha256(row.model_dump_json().encode()).hexdigest()[:16]


class EvaluationSummary(Record):
    """Content of scores.json."""

    step: str
    measures: dict[str, Measure]
    models: dict[str, ModelSummary]
    machine: Machine
    versions: dict[str, str]
    notes: list[str] = Field(default_factory=list)
    asking: Asking | None = None
    """Of a step that asked in rounds; null if every model was asked all rows."""


@dataclass(frozen=True)
class Scores:
    """A summary and its items."""

    summary: EvaluationSummary
    items: Sequence[ItemScore]


def write_scores(out: Path, summary: EvaluationSummary, items: Iterable[ItemScore]) -> None:
    """Write both files.

    Raises DataError for an unknown measure or model, a duplicate item, or a binary value other than 0 and 1.
    """
    items = list(items)
    _check(out, summary, items)
    (out / ITEMS).write_text("".join(item.model_dump_json() + "\n" for item in items), encoding="utf-8")
    (out / SUMMARY).write_text(summary.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_scores(folder: Path) -> Scores:
    """Read both files.  Raises DataError that names the file and what is wrong."""
    file = folder / SUMMARY
    if not file.is_file():
        raise DataError(str(file), "no such file", "scores", "run the step that measures")
    try:
        summary = EvaluationSummary.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise DataError(
            str(file), f"{place}: {first['msg']}", "the schema of tasks/shared/formats/scores.py"
        ) from error
    items = parse_lines(folder / ITEMS, lambda text, _: ItemScore.model_validate_json(text))
    _check(folder, summary, items)
    return Scores(summary, items)


def _check(folder: Path, summary: EvaluationSummary, items: Sequence[ItemScore]) -> None:
    seen: set[tuple[str, str]] = set()
    for item in items:
        where = f"{folder / ITEMS}: {item.measure} {item.id}"
        measure = summary.measures.get(item.measure)
        if measure is None:
            raise DataError(where, f"no measure {item.measure!r}", ", ".join(summary.measures))
        if (item.measure, item.id) in seen:
            raise DataError(where, "duplicate item", "every item once per measure")
        seen.add((item.measure, item.id))
        strange = sorted((item.values.keys() | item.answers.keys()) - summary.models.keys())
        if strange:
            raise DataError(where, f"no model {', '.join(strange)}", ", ".join(summary.models))
        if measure.binary and any(value not in (0.0, 1.0) for value in item.values.values()):
            raise DataError(where, f"values {sorted(set(item.values.values()))}", "0 or 1")
