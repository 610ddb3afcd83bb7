"""Forms of a JSON file.

Values in lines, one array, values over several lines, or one object that holds the rows.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from tasks.curate.reading.bad_rows import BadRow
from tasks.curate.reading.layouts import read_layout

LINES = 20
"""Lines from which the form is judged."""
OBJECT_LIMIT = 1 << 30
"""Bytes of an object that holds the rows in a list: it is read whole."""
SEVERAL = re.compile(rb'\}\s*\{\s*"')
"""End of one object and beginning of the next, without a comma between them."""
ROWS_NAMES = frozenset(
    {"data", "rows", "examples", "items", "records", "train", "test", "validation", "samples", "results", "entries"}
)
"""Names of lists that hold rows even if there is only one."""


def json_form(text: str, whole_file: bool) -> str:
    """Return "json lines", "json array" or "json values" for text that begins with a bracket.

    text: beginning of the file.  whole_file: False if there is more.
    """
    lines = [line.strip() for line in text.splitlines()[: LINES + 1] if line.strip()]
    if not whole_file and len(lines) == 1:  # one very long line
        return "json lines" if text.startswith("{") else "json array"
    alone = len(lines) == 1
    lines = lines[:LINES]
    if alone and whole_file and not _is_value(lines[0]) and re.search(r"\}\s*\{", lines[0]):
        return "json values"
    if "\r" in text and "\n" not in text:  # line ends of old Macs
        return "json array" if text.startswith("[") else "json values"
    if alone and _is_value(lines[0]):
        content = json.loads(lines[0])
        if isinstance(content, list) or has_rows(content):
            return "json array" if isinstance(content, list) else "json values"
    if holds_records(lines):
        return "json lines"
    return "json array" if text.startswith("[") else "json values"


def holds_records(lines: Sequence[str]) -> bool:
    """Return True if the lines are records by themselves.

    Half of them are, or the first is and no line begins or ends a part of a record.
    """
    whole = bool(lines) and _is_value(lines[0].removesuffix(","))
    bare = [line.removesuffix(",") for line in lines] if whole else lines
    parts = any(line in {"{", "["} or line.endswith(("{", "[", "}", "]")) and not _is_value(line) for line in bare)
    return 2 * sum(map(_is_record, bare)) >= len(lines) or (whole and _is_record(bare[0]) and not parts)


def _is_record(line: str) -> bool:
    """Return True for a line that is a value by itself, or a broken one.

    False for a part of a value.
    """
    if line.startswith(("{", "[")) and _is_value(line):
        return True
    return line.startswith("{") and len(line) > 1 and not line.endswith((",", "[", "{"))


def _is_value(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def has_rows(content: Mapping[str, Any]) -> bool:
    """Return True if an object holds a list of records and is not a conversation itself."""
    lists = {
        name: value
        for name, value in content.items()
        if isinstance(value, list) and value and isinstance(value[0], dict | list)
    }
    if not lists:
        return False
    try:
        read_layout(content, Counter())
    except BadRow:
        return bool(ROWS_NAMES & lists.keys()) or max(map(len, lists.values())) > 1
    return False


def is_one_object(opened: Callable[[], IO[bytes]]) -> bool:
    """Return True if a file is one JSON object and nothing else.

    opened: opens it.
    """
    size, last, several = 0, b"", False
    with opened() as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            size += len(block)
            several = several or bool(SEVERAL.search(block))
            last = (last + block)[-64:]
            if size > OBJECT_LIMIT or several:
                return False
    return last.rstrip().endswith(b"}")
