"""Cards (JSON files of any shape in an artifact) as readable tables."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.shared.errors import DataError
from tasks.shared.text.numbers import MISSING, count, quantity

LONGEST_LIST = 40
"""Longest list shown in full.  Only the length is shown of longer lists and of lists of records."""
MOST_COLUMNS = 6
NAMING = ("task", "target", "label", "tags", "files", "formats")
"""Keys whose inner keys are names from the data, at any depth; they are shown as they are."""


class Block(BaseModel):
    """Part of a card: a table whose first column names the row, or name-value pairs."""

    model_config = ConfigDict(frozen=True)
    title: str
    columns: list[str]
    rows: list[list[str]]

    @property
    def wordy(self) -> bool:
        """True if the cells hold text, which is aligned left, and not numbers."""
        return not self.columns and any(len(cell) > 24 for row in self.rows for cell in row[1:])


def read_card(path: Path) -> Any | None:
    """Read a JSON card; None without a file.  Raises DataError for broken JSON."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"not JSON ({error})", "a card", "rerun the step that writes it") from error


def readable(value: Any) -> str:
    """Format a leaf value of a card."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return quantity(value)
    if isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
        return ", ".join(readable(item) for item in value) or "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def spaced(key: str) -> str:
    """Words of a card's key."""
    return key.replace("_", " ").replace(".", " ")


def brief(value: Any) -> Any:
    """Return a card with long lists and lists of records replaced by their lengths."""
    if isinstance(value, dict):
        return {key: brief(inner) for key, inner in value.items()}
    if isinstance(value, list) and (len(value) > LONGEST_LIST or any(isinstance(item, dict) for item in value)):
        return f"{len(value)} entries, in the artifact"
    return value


def as_blocks(card: Any, title: str = "") -> list[Block]:
    """Convert a card to tables: leaf values first, then the inner mappings.

    Inner mappings with shared keys become the columns of one table.
    """
    if not isinstance(card, dict):
        return [Block(title=title, columns=[], rows=[["", readable(card)]])]
    word = word_of(title)
    leaves = [[word(key), readable(value)] for key, value in card.items() if not isinstance(value, dict)]
    inner = {key: value for key, value in card.items() if isinstance(value, dict) and value}
    blocks = [Block(title=title, columns=[], rows=leaves)] if leaves else []
    if 2 <= len(inner) <= MOST_COLUMNS and set.intersection(*(set(value) for value in inner.values())):
        return blocks + side_by_side(inner, title)
    for key, value in inner.items():
        blocks += as_blocks(value, join_titles(title, key))
    return blocks


def side_by_side(mappings: Mapping[str, Mapping[str, Any]], title: str) -> list[Block]:
    """Convert mappings with shared keys to the columns of one table.

    Their inner mappings become further tables with the same columns.
    """
    word = word_of(title)
    keys = list(dict.fromkeys(key for mapping in mappings.values() for key in mapping))
    nested = [key for key in keys if any(isinstance(mapping.get(key), dict) for mapping in mappings.values())]
    rows = [
        [word(key), *(readable(mapping[key]) if key in mapping else "" for mapping in mappings.values())]
        for key in keys
        if key not in nested
    ]
    blocks = [Block(title=title, columns=["", *map(word, mappings)], rows=rows)] if rows else []
    for key in nested:
        inner = {name: value for name, mapping in mappings.items() if isinstance(value := mapping.get(key), dict)}
        blocks += side_by_side(inner, join_titles(title, key))
    return blocks


def join_titles(title: str, key: str) -> str:
    """Title of an inner table."""
    return f"{title}: {word_of(title)(key)}" if title else spaced(key).capitalize()


def word_of(title: str) -> Callable[[str], str]:
    """Return the function that shows the keys of a table with this title.

    Names from the data are shown as they are.
    """
    return str if {part.lower() for part in title.split(": ")} & set(NAMING) else spaced
