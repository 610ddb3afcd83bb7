"""Measures of answers, by name: title, the rows that each applies to, and its value.

They follow from the targets of a row and from its task, so a corpus decides which of them it has.
"""

import difflib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

from tasks.evaluate.grading.groups import once_per_group
from tasks.evaluate.grading.replies import gold_answer
from tasks.shared.errors import DataError
from tasks.shared.formats.rows import Row
from tasks.shared.formats.scores import BALANCED, Measure, current_name
from tasks.shared.formats.targets import (
    Call,
    Choice,
    Decline,
    Facts,
    Json,
    Label,
    Labels,
    NoCall,
    Number,
    Text,
)  # fmt: skip
from tasks.shared.formats.tasks import Task, TaskType
from tasks.shared.grading.answer import Answer
from tasks.shared.grading.calls import canonical_calls, names_agree, readable
from tasks.shared.grading.grade import grade, stated_label, stated_labels
from tasks.shared.grading.json_values import NO_JSON, field_f1, fits_schema, parse_json
from tasks.shared.grading.labels import labels_f1
from tasks.shared.grading.texts import matches_reference, rouge_l
from tasks.shared.text.fact_matching import declines
from tasks.shared.text.repetition import repeats

TYPES: frozenset[TaskType] = frozenset(get_args(TaskType))
PROSE: frozenset[TaskType] = frozenset({"chat", "qa", "summarization", "reasoning"})
"""Types whose answers are sentences."""


@dataclass(frozen=True)
class TestItem:
    """A test row with its task.

    task: with all labels that it chooses from.  declining: some row of the task must be declined.
    """

    __test__ = False
    row: Row
    task: Task
    declining: bool = False

    @cached_property
    def gold(self) -> Answer:
        """The row's own answer."""
        return gold_answer(self.row, self.task)

    def targets(self, kind: type[Any]) -> list[Any]:
        """Return the row's targets of one kind."""
        return [target for target in self.row.key if isinstance(target, kind)]

    @property
    def references(self) -> tuple[str, ...]:
        """Reference answers: those of a text target, else the row's own answer, if there is one."""
        found = [text for target in self.targets(Text) for text in target.references]
        return tuple(found) or ((self.gold.text,) if self.gold.text else ())

    @property
    def wanted_text(self) -> str:
        """The row's own answer, or its first reference, as text."""
        return self.gold.text or next(iter(self.references), "")


@dataclass(frozen=True)
class RowMeasure:
    """A measure of answers.

    applies: the rows that are its items.  value: of an answer; None if not applicable.
    types: types of tasks whose rows it is taken of unless it is named.
    wanted, shown: what was expected and what was answered, as text.
    """

    measure: Measure
    applies: Callable[[TestItem], bool]
    value: Callable[[TestItem, Answer], float | bool]
    types: frozenset[TaskType] = TYPES
    wanted: Callable[[TestItem], str] = lambda item: item.wanted_text
    shown: Callable[[Answer], str] = lambda answer: answer.text


def _has(*kinds: type[Any]) -> Callable[[TestItem], bool]:
    return lambda item: any(isinstance(target, kinds) for target in item.row.key)


def _right(kind: type[Any]) -> Callable[[TestItem, Answer], float]:
    """Value of a measure that is the grade by the targets of one kind."""
    return lambda item, answer: min(grade(target, answer, item.task) for target in item.targets(kind))


def _mean(kind: type[Any], of: Callable[[str, Any], float | bool]) -> Callable[[TestItem, Answer], float]:
    """Mean of a figure over the row's targets of one kind."""

    def value(item: TestItem, answer: Answer) -> float:
        found = [float(of(answer.text, target)) for target in item.targets(kind)]
        return sum(found) / len(found)

    return value


def _field(kind: type[Any], of: Callable[[Any], str]) -> Callable[[TestItem], str]:
    """Targets of one kind as text."""
    return lambda item: "\n".join(of(target) for target in item.targets(kind))


def is_well_formed(item: TestItem, answer: Answer) -> bool:
    """Return True if the answer ended by itself, is not empty, and has the layout of its task.

    A label that the layout asks for must be a known one.
    """
    if item.task.layout == "none":
        return answer.finished and bool(answer.text or answer.calls)
    known = answer.label in item.task.labels if item.task.labels else bool(answer.label)
    return answer.finished and known and (item.task.layout != "first_line" or bool(answer.text))


def _answerable(item: TestItem) -> bool:
    """Return True for a row that must not be declined.

    Not if its own answer reads as if it did ("we cannot change ...").
    """
    return item.declining and not item.row.declines and not declines(item.gold.text, item.task.refusals)


def _declines(item: TestItem, answer: Answer) -> bool:
    return declines(answer.text, item.task.refusals)


def _f1(item: TestItem, answer: Answer) -> float:
    return min(labels_f1(stated_labels(answer, target, item.task), target) for target in item.targets(Labels))


def _calls_agree(item: TestItem, answer: Answer) -> bool:
    return canonical_calls(answer.calls) == canonical_calls(item.targets(Call))


def _call_texts(answer: Answer) -> str:
    return canonical_calls(answer.calls) or answer.text


def _schemed(item: TestItem) -> bool:
    return any(target.schema_text for target in item.targets(Json))


def _options(item: TestItem) -> str:
    return "\n".join(target.options[target.right] for target in item.targets(Choice))


_LABEL: dict[str, Any] = {"wanted": lambda item: item.row.label, "shown": stated_label}
_LABELS: dict[str, Any] = {
    "wanted": _field(Labels, lambda target: ", ".join(target.labels)),
    "shown": lambda answer: answer.label,
}
_JSON: dict[str, Any] = {"wanted": _field(Json, lambda target: target.value)}
_CALL: dict[str, Any] = {"wanted": lambda item: canonical_calls(item.targets(Call)), "shown": _call_texts}


MEASURES: Mapping[str, RowMeasure] = {
    "label": RowMeasure(Measure(title="label accuracy"), _has(Label), _right(Label), **_LABEL),
    "label_balanced": RowMeasure(
        Measure(title="balanced label accuracy", binary=False), _has(Label), _right(Label), frozenset({"classification"}), **_LABEL
    ),
    "labels": RowMeasure(
        Measure(title="exact sets of labels"), _has(Labels), _right(Labels), **_LABELS
    ),
    "labels_f1": RowMeasure(
        Measure(title="F1 of the labels", binary=False), _has(Labels), _f1, **_LABELS
    ),
    "fact": RowMeasure(Measure(title="fact accuracy"), _has(Facts), _right(Facts)),
    "refusal": RowMeasure(Measure(title="refusals of requests that must be refused"), _has(Decline), _right(Decline)),
    "over_refusal": RowMeasure(Measure(title="refusals of answerable questions", better="lower"), _answerable, _declines),
    "format": RowMeasure(
        Measure(title="well-formed answers"), lambda item: True, is_well_formed, wanted=lambda item: item.row.answer,
        shown=lambda answer: answer.output if answer.finished else f"{answer.output} ...",
    ),
    "loop": RowMeasure(
        Measure(title="answers that loop", better="lower"), lambda item: True, lambda item, answer: repeats(answer.text) or repeats(answer.reasoning), PROSE,
    ),
    "exact": RowMeasure(
        Measure(title="exact match with the gold answer"), lambda item: bool(item.references),
        lambda item, answer: matches_reference(answer.text, item.references), frozenset({"qa"}),
    ),
    "rouge_l": RowMeasure(
        Measure(title="ROUGE-L with the gold answer", binary=False), lambda item: bool(item.references),
        lambda item, answer: rouge_l(answer.text, item.references), PROSE - {"reasoning"},
    ),
    "value": RowMeasure(Measure(title="right values"), _has(Number), _right(Number), wanted=_field(Number, lambda target: f"{target.value:g}")),
    "choice": RowMeasure(Measure(title="right choices"), _has(Choice), _right(Choice), wanted=_options, shown=lambda answer: answer.choice or answer.text),
    "json_valid": RowMeasure(Measure(title="answers that are JSON"), _has(Json), lambda item, answer: parse_json(answer.text) is not NO_JSON),
    "json_schema": RowMeasure(
        Measure(title="answers that fit the schema"), _schemed,
        lambda item, answer: all(fits_schema(answer.text, target) for target in item.targets(Json) if target.schema_text),
        **_JSON,
    ),
    "json_exact": RowMeasure(Measure(title="exact JSON answers"), _has(Json), _right(Json), **_JSON),
    "field_f1": RowMeasure(
        Measure(title="F1 of the fields", binary=False), _has(Json), _mean(Json, field_f1), **_JSON
    ),
    "call_json": RowMeasure(
        Measure(title="calls that can be parsed"), _has(Call), lambda item, answer: bool(answer.calls) and all(map(readable, answer.calls)), **_CALL
    ),
    "call_name": RowMeasure(
        Measure(title="calls of the right tools"), _has(Call), lambda item, answer: names_agree(answer.calls, item.targets(Call)), **_CALL
    ),
    "call_arguments": RowMeasure(Measure(title="right calls with right arguments"), _has(Call), _calls_agree, **_CALL),
    "no_call": RowMeasure(Measure(title="no call where none is due"), _has(NoCall), _right(NoCall), shown=_call_texts),
    "words": RowMeasure(
        Measure(title="length of answers with their reasoning", unit="words", better="lower", binary=False), lambda item: True,
        lambda item, answer: float(len(answer.output.split())), frozenset({"reasoning", "summarization"}),
        shown=lambda answer: answer.output,
    ),
}  # fmt: skip
"""Measures by name, in the order in which they are reported."""
FULL_TEXTS = ("rouge_l", "loop", "exact", "fact", "refusal", "over_refusal", "value")
"""Measures whose items hold whole answers."""
FROM_LABELS = frozenset({"label", "label_balanced"})
"""Measures that a chosen label suffices for, without an answer."""


def known_measures(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names.  Raises ValueError for an unknown one."""
    for name in names:
        if current_name(name) not in MEASURES:
            near = difflib.get_close_matches(name, MEASURES, 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"no measure {name!r}; there are {', '.join(MEASURES)}{meant}")
    return tuple(names)


def missing_measures(missing: Sequence[str], items: Sequence[TestItem], where: str) -> DataError:
    """Return the error for measures that no test row can have."""
    targets = sorted({str(target.type) for item in items for target in item.row.key})
    return DataError(
        where, f"no row for {', '.join(missing)}: {len(items)} rows with the targets {', '.join(targets) or '(none)'}",
        f"measures that rows have: {', '.join(items_by_measure(items, tuple(MEASURES)))}", "remove it from `measures`, or leave them empty for all that apply",
    )  # fmt: skip


def items_by_measure(items: Sequence[TestItem], named: Sequence[str]) -> dict[str, list[TestItem]]:
    """Return the items of each measure, in the order of `MEASURES`.

    named: measures to take; empty takes those of the types of the rows' tasks.  Measures without items are left out.
    """
    found: dict[str, list[TestItem]] = {}
    for name, entry in MEASURES.items():
        if named and name not in named:
            continue
        own = [item for item in items if (named or item.task.type in entry.types) and entry.applies(item)]
        if own:
            found[name] = own
    return found


def item_weights(measure: str, items: Sequence[TestItem]) -> dict[str, float]:
    """Return a weight per row id with which every group of a measure's rows counts once.

    Under `label_balanced`, every label counts the same besides; the weights of groups have the mean 1.
    """
    once = once_per_group({item.row.id: item.row.group for item in items})
    if measure != BALANCED:
        return once
    totals: defaultdict[str, float] = defaultdict(float)
    for item in items:
        totals[item.row.label] += once[item.row.id]
    share = sum(totals.values()) / len(totals)
    return {item.row.id: once[item.row.id] * share / totals[item.row.label] for item in items}
