"""A teacher's reply in parts, and the message that it becomes in the row's layout."""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.shared.engines.sample_store import Sample
from tasks.shared.formats.rows import Message, Row, ToolCall
from tasks.shared.formats.tasks import Task
from tasks.shared.grading.json_values import FENCE, NO_JSON, parse_json
from tasks.shared.grading.labels import canonical_label, same_label
from tasks.shared.text.answer_format import join_answer
from tasks.shared.text.reasoning import CLOSE, OPEN, split_reasoning
from tasks.shared.text.stops import cut_at
from tasks.traces.defaults import is_sentence


@dataclass(frozen=True)
class Reply:
    """A teacher's reply, split into answer and reasoning.

    reasoning: kept for training; empty if none is wanted.  thought: True if there was any reasoning.
    """

    text: str
    finish_reason: str
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    thought: bool = False


def split_reply(sample: Sample, task: Task, wanted: bool, stop: Sequence[str]) -> Reply:
    """Split a sample into answer and reasoning.

    wanted: whether the sample has reasoning.
    stop: strings that end an answer.  An endpoint would end the reasoning at them as well, so the answer is cut here instead.
    Reasoning that is not wanted is taken off as well; a sentence task rejects the marks instead, as its teacher was to write none.
    """
    marked = CLOSE in sample.text or sample.text.lstrip().startswith(OPEN)
    before, answer = split_reasoning(sample.text) if marked else ("", sample.text)
    thought = bool(before or sample.reasoning)
    if not wanted:
        text = sample.text if is_sentence(task) and answer else answer
        return Reply(finish(text, task), sample.finish_reason, "", sample.tool_calls, thought)
    text, cut = cut_at(answer, tuple(stop))
    reason = "stop" if cut else sample.finish_reason
    return Reply(finish(text, task), reason, tidy(sample.reasoning or before), sample.tool_calls, thought)


def finish(text: str, task: Task) -> str:
    """Return the text of an answer: stripped, a sentence closed, JSON out of its code fence."""
    text = text.strip()
    if is_sentence(task):
        return close_sentence(text)
    if (task.layout == "json" or task.type == "extraction") and (fenced := FENCE.findall(text)):
        return next((part.strip() for part in fenced if parse_json(part) is not NO_JSON), text)
    return text


def close_sentence(text: str) -> str:
    """Return the answer stripped, with the final period that a stop string removed."""
    text = text.strip()
    return f"{text}." if text and (text[-1].isalnum() or text[-1] in "'\")%") else text


def tidy(reasoning: str) -> str:
    """Return the reasoning without blank lines and without surplus spaces."""
    return "\n".join(" ".join(line.split()) for line in reasoning.splitlines() if line.strip())


def message_of(row: Row, task: Task, reply: Reply) -> Message:
    """Return the assistant's message that a reply becomes.

    The text stays verbatim, but for a label where the task's layout has one.

    first_line: the label of the answer key on a line above the text.  alone: the label as the key or the task spells it.
    """
    content = reply.text
    if task.layout == "first_line" and row.label and content:
        content = join_answer(row.label, content)
    elif task.layout == "alone" and content:
        known = row.label if row.label and same_label(content, row.label, task.labels) else ""
        label = known or canonical_label(content, task.labels)
        content = label if known or label in task.labels else content
    reasoning = reply.reasoning or row.reasoning
    return Message(role="assistant", content=content, reasoning=reasoning, tool_calls=reply.calls)
