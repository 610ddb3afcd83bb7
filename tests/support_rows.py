"""Rows of the support task for tests, written with the fields of the earlier schema."""

from collections.abc import Sequence
from typing import Any

from tasks.shared.formats.earlier_rows import EARLIER_TASK, upgrade
from tasks.shared.formats.rows import Message, Row
from tasks.shared.formats.tasks import Task

TASKS = {EARLIER_TASK: Task(type="qa", layout="first_line")}
"""Tasks of a corpus of such rows."""


def support_row(*, messages: Sequence[Message], kind: str = "faq", intent: str = "returns", **more: Any) -> Row:
    """Row whose answer starts with a label line; `accept`, `article`, `grounded`, `source`, `reasoning` as before."""
    turns = [message.model_dump(exclude_defaults=True) for message in messages]
    return Row.model_validate(upgrade({"kind": kind, "intent": intent, "messages": turns, **more}))
