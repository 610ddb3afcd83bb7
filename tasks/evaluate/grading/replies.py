"""Replies of models under test, and their parts."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tasks.shared.formats.rows import Row
from tasks.shared.formats.tasks import Task
from tasks.shared.grading.answer import Answer, read_answer
from tasks.shared.text.reasoning import split_reasoning


@dataclass(frozen=True)
class Reply:
    """A model's output for one row.

    choice: the chosen label; empty if none was asked for.  output: text as generated, label included.
    ended: the model stopped by itself, before the length limit.  labeled: the answer should have the task's layout (not for a
    reference).
    """

    choice: str
    output: str
    ended: bool = True
    labeled: bool = True

    @property
    def reasoning_truncated(self) -> bool:
        """True if the length limit was reached before the end of the reasoning."""
        reasoning, answer = split_reasoning(self.output)
        return bool(reasoning) and not answer and not self.ended


def read_reply(reply: Reply, task: Task) -> Answer:
    """Return the parts of a reply; that of a reference is not divided by the task's layout."""
    known = task if reply.labeled else task.model_copy(update={"layout": "none"})
    return read_answer(reply.output, known, reply.ended, choice=reply.choice)


def gold_answer(row: Row, task: Task) -> Answer:
    """Return the parts of the row's own answer; all empty if it has none."""
    calls = row.messages[-1].tool_calls if row.answered else ()
    return read_answer(row.answer, task, reasoning=row.reasoning, tool_calls=calls)


def truncation_notes(replies: Mapping[str, Collection[Reply]], max_new_tokens: int) -> list[str]:
    """Return a note for each model whose reasoning exceeded the length limit in some answers.

    Such an answer is empty, whatever the model knows.
    """
    truncated = {name: sum(reply.reasoning_truncated for reply in found) for name, found in replies.items()}
    return [
        f"{name}: {count} of {len(replies[name])} answers were truncated within their reasoning; raise max_new_tokens ({max_new_tokens})."
        for name, count in truncated.items()
        if count
    ]
