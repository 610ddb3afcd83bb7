"""Documents from plain text and JSON-lines files, named by file and position."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.shared.errors import DataError
from tasks.shared.formats.rows import parse_lines

PLAIN = (".txt", ".md", ".tokens")


LINES = ".jsonl"


@dataclass(frozen=True)
class Document:
    """A text to score, with what a model reads before it without a score.

    prompt, tools: the conversation and JSON text of its tools; empty for none.
    """

    id: str
    text: str
    prompt: list[dict[str, Any]] = field(default_factory=list)
    tools: str = ""
    question: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    cluster: str = ""
    """Phrasing group of a row."""

    @property
    def bytes(self) -> int:
        """Bytes of the text in UTF-8."""
        return len(self.text.encode())


class Passage(BaseModel):
    """A line of a .jsonl file of texts; other keys are ignored."""

    model_config = ConfigDict(frozen=True)
    text: str


def read_texts(path: Path, size: int) -> list[Document]:
    """Read a file, or all files below a folder by name, in pieces of about `size` bytes.

    Raises DataError for an unknown file type, a folder without files, bytes that are not UTF-8, bad lines, or only white space.
    See `cut` for the pieces.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in (*PLAIN, LINES))
    if not files or any(file.suffix not in (*PLAIN, LINES) for file in files):
        got = "no readable text" if path.exists() else "no such file or folder"
        raise DataError(str(path), got, f"one of {', '.join((*PLAIN, LINES))}, or a folder of them")
    found = []
    for file in files:
        name = file.name if path.is_file() else file.relative_to(path).as_posix()
        tags = {"file": name.lower()} if len(files) > 1 else {}
        pieces = [piece for text in _texts(file) for piece in cut(text, size)]
        found += [Document(f"{name}:{number}", piece, tags=tags) for number, piece in enumerate(pieces, start=1)]
    if not found:
        raise DataError(str(path), "only white space", "text to measure perplexity on")
    return found


def _texts(file: Path) -> list[str]:
    if file.suffix == LINES:
        return [passage.text for passage in parse_lines(file, lambda line, _: Passage.model_validate_json(line))]
    try:
        return [file.read_text(encoding="utf-8-sig")]
    except UnicodeDecodeError as error:
        raise DataError(str(file), f"not UTF-8 ({error.reason} at byte {error.start})", "text in UTF-8") from error


def cut(text: str, size: int) -> list[str]:
    """Cut a text after lines into pieces of at most `size` UTF-8 bytes; 0 keeps it whole.

    Longer lines are cut after words; longer words stay whole.  A last piece of less than half the size is joined to the one
    before it.  The pieces make up the text, except that pieces of white space are dropped.
    """
    pieces: list[str] = []
    current: list[str] = []
    length = 0
    for unit in _units(text, size) if size else [text]:
        more = len(unit.encode())
        if current and length + more > size:
            pieces.append("".join(current))
            current, length = [], 0
        current.append(unit)
        length += more
    last = "".join(current)
    if pieces and length < size / 2:
        pieces[-1] += last
    else:
        pieces.append(last)
    return [piece for piece in pieces if piece.strip()]


def _units(text: str, size: int) -> Iterator[str]:
    for line in text.splitlines(keepends=True):
        if len(line.encode()) <= size:
            yield line
        else:
            yield from re.findall(r"\s*\S+\s*|\s+", line)
