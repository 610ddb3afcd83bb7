"""A conversation on its way from a record to a row, and access to the record's columns."""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.curate.reading.bad_rows import BadRow
from tasks.shared.formats.rows import Message, Row
from tasks.shared.formats.targets import Target


@dataclass
class Draft:
    """A conversation as a layout reads it.

    layout: name of the format.  messages, tools: as in `Row`.  label: of a table of texts and labels; None for other layouts.
    references: accepted answers besides the assistant's.  targets: that the data state.  used: columns that are in the conversation.
    row: a finished row, for data in the schema of the corpus.
    """

    layout: str
    messages: list[Message] = field(default_factory=list)
    tools: str = ""
    label: str | None = None
    references: tuple[str, ...] = ()
    targets: list[Target] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    row: Row | None = None


class Columns:
    """A record's columns, found by name in any case.

    Spaces, dashes and underscores are the same.
    """

    def __init__(self, record: Mapping[str, Any], counts: Counter[str] | None = None) -> None:
        self.record = record
        self.counts: Counter[str] = counts if counts is not None else Counter()
        self.names = {plain_name(name): name for name in reversed(list(record))}

    def find(self, names: Iterable[str]) -> str:
        """Return the first column of these names that has a value; empty if there is none."""
        return next((self.names[name] for name in names if name in self.names and self.value(name) is not None), "")

    def has(self, *names: str) -> bool:
        """Return True if all columns exist."""
        return all(name in self.names for name in names)

    def value(self, name: str) -> Any:
        """Value of a column; None if it is missing or null."""
        return self.record.get(self.names.get(name, name))

    def text(self, name: str) -> str:
        """Text of a column, by its own name."""
        return as_text(self.record.get(name))


def plain_name(name: Any) -> str:
    """Column name in lower case with underscores."""
    return re.sub(r"[\s\-_]+", "_", str(name).strip().lower())


def as_text(value: Any) -> str:
    """Text of a value: strings as they are, null empty, numbers and objects as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, default=str)


def user(text: str) -> Message:
    """Turn of the user.  Raises BadRow if it is blank."""
    if not text.strip():
        raise BadRow("an empty question", "the user's text is blank", "delete these rows")
    return Message(role="user", content=text)


def talk(question: str, answer: str | None, system: str = "") -> list[Message]:
    """Conversation of one question; without an answer it ends with the user."""
    found = [Message(role="system", content=system)] if system.strip() else []
    found.append(user(question))
    return [*found, Message(role="assistant", content=answer)] if answer and answer.strip() else found


def tools_text(value: Any, legacy: bool = False) -> str:
    """JSON text of a list of tools in OpenAI's format; empty for none.

    legacy: a list of bare functions, as OpenAI had before tools.
    Raises BadRow if it is no list.
    """
    if isinstance(value, str):
        if not value.strip():
            return ""
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadRow("tools that are not JSON", value[:80], "tools: a JSON list of functions") from error
    if value is None or value == []:
        return ""
    if not isinstance(value, list):
        raise BadRow("tools that are not a list", type(value).__name__, "tools: a JSON list of functions")
    bare = legacy or all(isinstance(tool, dict) and "name" in tool and "function" not in tool for tool in value)
    tools = [{"type": "function", "function": tool} for tool in value] if bare else value
    return json.dumps(tools, ensure_ascii=False)


def unpacked(value: Any) -> Any:
    """A list that a table holds as text, in JSON or as Python prints it."""
    if isinstance(value, str) and value.lstrip().startswith("[") and value.rstrip().endswith("]"):
        try:
            return json.loads(value)
        except ValueError:
            try:
                return ast.literal_eval(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                return value
    return value
