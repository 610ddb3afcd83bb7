"""Conversations as plain text, for a model that judges them."""

from collections.abc import Iterable

from tasks.shared.formats.rows import Message


def transcript(messages: Iterable[Message]) -> str:
    """Return the turns, each after its role: "user: Where is my order?"."""
    return "\n".join(f"{message.role}: {turn_text(message)}" for message in messages)


def turn_text(message: Message) -> str:
    """Return a turn's content, followed by its tool calls."""
    calls = [f"[calls {call.name}({call.arguments})]" for call in message.tool_calls]
    return "\n".join(filter(None, [message.content, *calls]))
