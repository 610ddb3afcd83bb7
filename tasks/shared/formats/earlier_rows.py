"""Conversion of rows in the schema that corpora had before rows carried an answer key."""

from typing import Any

EARLIER_TASK = "support"
"""Task of the converted rows: their answers start with a label line."""
_MARKS = frozenset({"kind", "intent", "accept", "article", "grounded"})


def is_earlier(row: Any) -> bool:
    """Return True for a JSON object of the earlier schema: a kind, an intent and messages."""
    return (
        isinstance(row, dict)
        and {"kind", "intent", "messages"} <= row.keys()
        and not {"key", "tags", "task"} & row.keys()
    )


def upgrade(row: dict[str, Any]) -> dict[str, Any]:
    """Convert a row: kind and intent become tags, intent, accept and refusals the answer key.

    Unknown fields stay, so that the row's schema refuses them by name.
    """
    left = {name: value for name, value in row.items() if name not in _MARKS | {"reasoning", "source", "messages"}}
    messages = [dict(message) if isinstance(message, dict) else message for message in row["messages"]]
    if row.get("reasoning") and messages and isinstance(messages[-1], dict):
        messages[-1]["reasoning"] = row["reasoning"]
    key: list[dict[str, Any]] = [{"type": "label", "label": row["intent"]}]
    if row.get("accept"):
        key.append({"type": "facts", "groups": row["accept"]})
    if row["kind"] == "refuse":
        key.append({"type": "decline"})
    tags = {
        "kind": row["kind"],
        "intent": str(row["intent"]).lower(),
        "grounded": "yes" if row.get("grounded") else "no",
    }
    return {
        **left, "task": EARLIER_TASK, "messages": messages, "key": key, "tags": tags,
        "evidence": row.get("article", ""), "origin": row.get("source", "gold"),
    }  # fmt: skip
