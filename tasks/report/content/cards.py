"""Cards (JSON of any shape beside an artifact) as tables for people."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.shared.errors import DataError
from tasks.shared.numbers import MISSING, count, quantity

LONGEST_LIST = 40
"""Longer lists, and lists of records, are shown by their length."""
MOST_COLUMNS = 6


class Block(BaseModel):
    """A part of a card: a table whose first column names the row; without columns, names and values."""

    model_config = ConfigDict(frozen=True)
    title: str
    columns: list[str]
    rows: list[list[str]]

    @property
    def wordy(self) -> bool:
        """Whether it holds words rather than numbers, so that its cells read better from the left."""
        return not self.columns and any(len(cell) > 24 for row in self.rows for cell in row[1:])


def read_card(path: Path) -> Any | None:
    """A JSON card, or None when there is no file.  Raises DataError for broken JSON."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"not JSON ({error})", "a card", "run the step that writes it again") from error


def readable(value: Any) -> str:
    """A leaf of a card as text."""
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
    """A key of a card as words."""
    return key.replace("_", " ").replace(".", " ")


def brief(value: Any) -> Any:
    """A card without its long lists and lists of records, which stay in the artifact."""
    if isinstance(value, dict):
        return {key: brief(inner) for key, inner in value.items()}
    if isinstance(value, list) and (len(value) > LONGEST_LIST or any(isinstance(item, dict) for item in value)):
        return f"{len(value)} entries, in the artifact"
    return value


def as_blocks(card: Any, title: str = "") -> list[Block]:
    """A card as tables: its leaves first, then its inner mappings, those with shared keys side by side as columns."""
    if not isinstance(card, dict):
        return [Block(title=title, columns=[], rows=[["", readable(card)]])]
    leaves = [[spaced(key), readable(value)] for key, value in card.items() if not isinstance(value, dict)]
    inner = {key: value for key, value in card.items() if isinstance(value, dict) and value}
    blocks = [Block(title=title, columns=[], rows=leaves)] if leaves else []
    if 2 <= len(inner) <= MOST_COLUMNS and set.intersection(*(set(value) for value in inner.values())):
        return blocks + side_by_side(inner, title)
    for key, value in inner.items():
        blocks += as_blocks(value, join_titles(title, key))
    return blocks


def side_by_side(mappings: Mapping[str, Mapping[str, Any]], title: str) -> list[Block]:
    """Mappings with shared keys as columns of one table; their inner mappings as tables of the same columns."""
    keys = list(dict.fromkeys(key for mapping in mappings.values() for key in mapping))
    nested = [key for key in keys if any(isinstance(mapping.get(key), dict) for mapping in mappings.values())]
    rows = [
        [spaced(key), *(readable(mapping[key]) if key in mapping else "" for mapping in mappings.values())]
        for key in keys
        if key not in nested
    ]
    blocks = [Block(title=title, columns=["", *map(spaced, mappings)], rows=rows)] if rows else []
    for key in nested:
        inner = {name: value for name, mapping in mappings.items() if isinstance(value := mapping.get(key), dict)}
        blocks += side_by_side(inner, join_titles(title, key))
    return blocks


def join_titles(title: str, key: str) -> str:
    """The title of an inner table."""
    return f"{title}: {spaced(key)}" if title else spaced(key).capitalize()
