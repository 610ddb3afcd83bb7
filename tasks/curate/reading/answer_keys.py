"""Targets that follow from a task's type and the answer that the data hold."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping

from tasks.curate.reading.bad_rows import BadRow
from tasks.curate.reading.drafts import Draft
from tasks.shared.formats.rows import Message
from tasks.shared.formats.targets import Call, Choice, Facts, Json, Label, Labels, NoCall, Number, Target, Text
from tasks.shared.formats.tasks import Task, TaskType
from tasks.shared.grading.answer import read_answer
from tasks.shared.grading.numbers import last_number

STATED = "answers that state their label"
UNSTATED = "answers that do not state their label in the task's layout"
LONGEST_LABEL = 100
"""Characters of an answer that may be a label."""


def add_label(draft: Draft, task: Task, counts: Counter[str]) -> None:
    """Add a classification's label to the key, and the answer from the label or vice versa.

    Raises BadRow for a label that is not among the task's, or an answer that does not state one.
    """
    if task.type != "classification" and draft.label is None:
        return
    if any(isinstance(target, Labels | Label) for target in draft.targets):
        _answer_labels(draft, task)
        return
    final = draft.messages[-1]
    answered = final.role == "assistant"
    if draft.label is None and answered:
        draft.label = stated_label(final.content, task)
    if not draft.label:
        counts["rows without a label"] += 1
        return
    if task.labels and draft.label not in task.labels:
        raise BadRow(
            "a label that the task does not list", repr(draft.label[:60]), "add it to task.labels, or correct the row"
        )
    if answered:
        counts[STATED if stated_label(final.content, task, strict=False) == draft.label else UNSTATED] += 1
    if not answered and task.type == "classification":
        _answer(draft, draft.label, task)
    draft.targets.append(Label(label=draft.label))


def _answer(draft: Draft, label: str, task: Task) -> None:
    """Add the answer that states a label, in layouts where the label is all of it."""
    if task.layout in {"alone", "none"}:
        draft.messages.append(Message(role="assistant", content=label))
    elif task.layout == "json":
        draft.messages.append(
            Message(role="assistant", content=json.dumps({task.label_field: label}, ensure_ascii=False))
        )


def _answer_labels(draft: Draft, task: Task) -> None:
    found = next((target for target in draft.targets if isinstance(target, Labels)), None)
    if found and draft.messages[-1].role != "assistant" and task.type == "classification":
        content = json.dumps({task.label_field: list(found.labels)}, ensure_ascii=False)
        text = content if task.layout == "json" else ", ".join(found.labels)
        draft.messages.append(Message(role="assistant", content=text))


def stated_label(answer: str, task: Task, strict: bool = True) -> str:
    """Label that an answer states in the task's layout.

    strict: raise BadRow if it states none; otherwise return an empty string.
    """
    found = read_answer(answer, task).label.strip()
    if task.layout in ("none", "alone") and ("\n" in found or len(found) > LONGEST_LABEL):
        found = ""
    if not found and strict:
        fix = "name the column of the label: map: {label: COLUMN}; or the layout: task: {layout: first_line}"
        raise BadRow(f"an answer that states no label (layout {task.layout})", answer[:60], fix)
    return found


def add_targets(draft: Draft, task: Task, counts: Counter[str]) -> None:
    """Add the targets that the task's type derives from the answer, unless the data state them."""
    if draft.references and not any(isinstance(target, Text) for target in draft.targets):
        draft.targets.append(Text(references=draft.references))
    maker = BY_TYPE.get(task.type)
    final = draft.messages[-1]
    if maker and final.role == "assistant":
        found = maker(draft, final)
        draft.targets += found
        if not found and not draft.targets:
            counts[f"answers from which no target of a task of type {task.type} can be taken"] += 1


def _has(draft: Draft, *kinds: type) -> bool:
    return any(isinstance(target, kinds) for target in draft.targets)


def _number(draft: Draft, final: Message) -> list[Target]:
    if _has(draft, Number, Choice, Text):
        return []
    found = last_number(final.content)
    return [] if found is None else [Number(value=found[0])]


def _calls(draft: Draft, final: Message) -> list[Target]:
    if _has(draft, Call, NoCall):
        return []
    if final.tool_calls:
        return [Call(name=call.name, arguments=call.arguments) for call in final.tool_calls]
    return [NoCall()] if draft.tools else []


def _json(draft: Draft, final: Message) -> list[Target]:
    if _has(draft, Json):
        return []
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", final.content.strip())
    try:
        json.loads(text)
    except ValueError:
        return []
    return [Json(value=text)]


def _text(draft: Draft, final: Message) -> list[Target]:
    if _has(draft, Text, Facts) or not final.content.strip():
        return []
    return [Text(references=(final.content,))]


BY_TYPE: Mapping[TaskType, Callable[[Draft, Message], list[Target]]] = {
    "reasoning": _number, "tools": _calls, "extraction": _json, "qa": _text, "summarization": _text,
}  # fmt: skip
"""What the answer of a row gives to its key, by type of task."""
