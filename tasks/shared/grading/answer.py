"""An answer in parts: reasoning, label, text and tool calls, by the layout of its task."""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.shared.formats.rows import ToolCall
from tasks.shared.formats.tasks import Task
from tasks.shared.grading.calls import calls_in
from tasks.shared.grading.json_values import NO_JSON, canonical_json, parse_json
from tasks.shared.text.answer_format import split_answer
from tasks.shared.text.reasoning import split_reasoning


@dataclass(frozen=True)
class Answer:
    """An assistant's answer in parts.

    output: as written.
    reasoning: before the answer, between marks or given apart.
    label: as the task's layout states it, empty if there is none; in the layout `none`, the whole text.
    text: without reasoning and label line.
    calls: of tools, given apart or written in the text.
    finished: ended by the model itself, before a length limit.
    choice: label that the model finds most likely, where that was measured; it replaces `label` in grades.
    """

    output: str
    reasoning: str = ""
    label: str = ""
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    finished: bool = True
    choice: str = ""


def read_answer(
    output: str,
    task: Task,
    finished: bool = True,
    reasoning: str = "",
    tool_calls: Sequence[ToolCall] = (),
    choice: str = "",
) -> Answer:
    """Split an assistant's output by the layout of `task`.

    reasoning, tool_calls: those that the engine or endpoint returned apart from the output.
    """
    thought, whole = split_reasoning(output)
    label, text = whole, whole
    if task.layout == "first_line":
        label, text = split_answer(whole)
    elif task.layout == "json":
        label = _field(whole, task.label_field)
    calls = tuple(tool_calls) or calls_in(whole)
    return Answer(output, reasoning or thought, label, text, calls, finished, choice)


def _field(text: str, name: str) -> str:
    """Return a field of the JSON object in `text`: strings as they are, other values as JSON.

    "" without the field.
    """
    value = parse_json(text)
    if value is NO_JSON or not isinstance(value, dict) or name not in value:
        return ""
    return value[name] if isinstance(value[name], str) else canonical_json(value[name])
