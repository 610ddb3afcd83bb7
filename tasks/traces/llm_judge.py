"""A judge model's yes or no to a teacher's answer."""

import re
from collections.abc import Mapping
from typing import Any

from tasks.shared.formats.rows import Row
from tasks.shared.formats.targets import Facts, Text
from tasks.shared.formats.tasks import Task
from tasks.shared.text.transcript import transcript, turn_text
from tasks.traces.reply import Reply, message_of

CRITERIA = (
    "The answer does what the last message asks for, is correct and complete, contradicts nothing that was said before, and "
    "is in the language of the conversation."
)
INSTRUCTION = (
    "You decide whether an answer may be used to train an assistant. The criteria, which may speak of comparing answers: {criteria}\n"
    "If the answer meets them, reply with the word yes, otherwise with the word no. Write nothing else."
)
TOKENS = 200
"""Length limit of a judge's reply: room for a thought before the word."""
WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def judge_messages(row: Row, task: Task, reply: Reply) -> list[dict[str, Any]]:
    """Build the chat that asks whether a reply may be kept."""
    parts = ["Conversation:", transcript(row.before), "", "Answer to judge:", turn_text(message_of(row, task, reply))]
    if references := [text for target in row.key if isinstance(target, Text) for text in target.references]:
        parts += ["", "Right answers, which may be worded differently:", *references]
    if facts := [" or ".join(group) for target in row.key if isinstance(target, Facts) for group in target.groups]:
        parts += ["", f"Facts that it must state: {'; '.join(facts)}"]
    return [
        {"role": "system", "content": INSTRUCTION.format(criteria=task.judge or CRITERIA)},
        {"role": "user", "content": "\n".join(parts)},
    ]


def read_decision(text: str) -> bool | None:
    """Return True for yes, False for no, None for neither: the last such word of the reply."""
    found = WORD.findall(text)
    return found[-1].lower() == "yes" if found else None


def judge_sampling(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling settings of a judge's request."""
    return {"max_tokens": TOKENS, "temperature": 0.0, **extra}
