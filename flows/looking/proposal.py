"""The task that the answers of a file suggest, if the file does not name one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flows.looking.sample import Sample
from tasks.shared.formats.rows import Row
from tasks.shared.formats.tasks import Task, TaskType
from tasks.shared.grading.json_values import parse_json
from tasks.shared.grading.numbers import MARKED, boxed_text, last_number

FEWEST_ANSWERS, SHARE = 10, 0.95
"""Fewest answers that suggest a task, and the share of them that must be alike."""


@dataclass(frozen=True)
class Proposal:
    """A task by its type, and what suggests it."""

    type: TaskType
    reason: str


def propose_task(sample: Sample) -> Proposal | None:
    """Return the task that nearly all answers suggest; None for free answers or a known task.

    GSM8K's `#### 18` and a boxed number suggest reasoning, JSON an extraction, tool calls a task of tools.
    """
    answered = [row for row in sample.rows if row.answered]
    if sample.reader.given or sample.reader.named or any(task != Task() for task in sample.reader.tasks.values()):
        return None
    if len(answered) < FEWEST_ANSWERS:
        return None
    for kind, (words, fits) in SIGNS.items():
        count = sum(map(fits, answered))
        if count and count >= (SHARE * len(answered) if kind != "tools" else 1):
            return Proposal(kind, f"{count} of {len(answered)} answers {words}")
    return None


def _is_json(row: Row) -> bool:
    return row.answer.lstrip().startswith(("{", "[", "```")) and isinstance(parse_json(row.answer), dict | list)


def _ends_with_number(row: Row) -> bool:
    """Return True if the last line is `#### 18`, or a number stands in a box.

    A heading has other lines below it.
    """
    text = row.answer.rstrip()
    marks = [match.end() for match in MARKED.finditer(text)]
    return last_number(text) is not None and ((bool(marks) and marks[-1] == len(text)) or bool(boxed_text(text)))


SIGNS: Mapping[TaskType, tuple[str, Callable[[Row], bool]]] = {
    "tools": ("call a tool", lambda row: bool(row.tools and row.messages[-1].tool_calls)),
    "reasoning": ("end with a marked number (#### or \\boxed)", _ends_with_number),
    "extraction": ("are JSON", _is_json),
}
"""Signs of each type of task in an answer: in words, and as a test of a row."""
