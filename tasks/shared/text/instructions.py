"""Instructions for models that were not trained on a task: teachers, and references."""

from collections.abc import Mapping, Sequence

from tasks.shared.formats.tasks import Task, TaskType

CLASSIFY = "Classify the user's message. Answer with one of these labels and nothing else: {labels}."
GENERAL: Mapping[TaskType, str] = {
    "classification": CLASSIFY,
    "extraction": "Extract what is asked for. Answer with JSON and nothing else.",
    "qa": "Answer the question in one short sentence.",
    "summarization": "Summarize the text in a few sentences.",
    "reasoning": "Solve the problem step by step. End with the final answer on a line of its own, after ####.",
}
"""Instructions by type of the task, for rows without a system turn; a chat and a task with tools need none."""


def instruction_of(task: Task, labels: Sequence[str] = ()) -> str:
    """Return the task's own instruction, or a general one for its type; empty for a plain chat.

    labels: to choose from, in the general instruction of a classification.
    """
    return task.instruction or GENERAL.get(task.type, "").format(labels=", ".join(labels))
