"""Bad rows: why a record cannot be read, the quarantine file, and the limit on their share."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tasks.shared.errors import DataError

FILE = "quarantine.jsonl"
KEPT_TEXT = 2000
"""Characters of a bad record's text that the quarantine keeps."""
SHOWN_CLASSES = 8


class BadRow(Exception):
    """A record that cannot be read.

    reason: class of the error, the same words for every record with this error.  detail: about this record.
    fix: how to repair or map such records.
    """

    def __init__(self, reason: str, detail: str = "", fix: str = "") -> None:
        self.reason, self.detail, self.fix = reason, detail, fix
        super().__init__(f"{reason}: {detail}" if detail else reason)


@dataclass(frozen=True)
class Record:
    """A record of a file, parsed but not yet understood.

    line: line of its first character, or number of the record, from 1.  offset: bytes before it in the (unpacked) file, -1 if unknown.
    value: the parsed record.  error: set instead of `value` if it could not be parsed.  text: its beginning, for the quarantine.
    """

    line: int
    offset: int
    value: object = None
    error: BadRow | None = None
    text: str = ""


@dataclass
class ErrorClass:
    """Records with the same reason: their number, and the first of them."""

    file: str
    line: int
    detail: str
    fix: str
    count: int = 0


@dataclass
class Quarantine:
    """Bad records by class, and the stream that they are written to, if any."""

    stream: IO[str] | None = None
    classes: dict[str, ErrorClass] = field(default_factory=dict)
    count: int = 0

    def add(self, file: str, record: Record, error: BadRow) -> None:
        """Count a bad record and write its file, line, offset, reason and text."""
        first = self.classes.setdefault(error.reason, ErrorClass(file, record.line, error.detail, error.fix))
        first.count += 1
        self.count += 1
        if self.stream:
            text = record.text or json.dumps(record.value, ensure_ascii=False, default=str)
            entry = {
                "file": file,
                "line": record.line,
                "offset": record.offset,
                "reason": str(error),
                "text": text[:KEPT_TEXT].encode("utf-8", "backslashreplace").decode(),
                "length": len(text),
            }
            self.stream.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def summary(self) -> dict[str, int]:
        """Number of bad records by reason, for the card."""
        return {reason: found.count for reason, found in sorted(self.classes.items())}

    def check(self, where: str, read: int, limit: float) -> None:
        """Raise DataError if more than the share `limit` of the `read` records is bad.

        One bad record is always allowed beside good ones.
        """
        if self.count and (self.count == read or self.count > max(1, int(limit * read))):
            raise self._error(where, read, limit)

    def _error(self, where: str, read: int, limit: float) -> DataError:
        ordered = sorted(self.classes.items(), key=lambda item: -item[1].count)
        lines = [
            f"{found.count} x {reason}; first: {found.file} line {found.line}{': ' + found.detail if found.detail else ''}"
            for reason, found in ordered[:SHOWN_CLASSES]
        ]
        if len(ordered) > SHOWN_CLASSES:
            lines.append(f"and {len(ordered) - SHOWN_CLASSES} more reasons")
        fixes = list(dict.fromkeys(found.fix for _, found in ordered if found.fix))
        got = f"{self.count} of {read} records cannot be read\n    " + "\n    ".join(lines)
        share = self.count / read
        general = f"correct or delete these lines, or allow them: max_quarantined={min(1.0, share * 1.05 + 1e-3):.3f}"
        if self.count == read:
            general = "python -m flows.look FILE  shows what the file holds"
        return DataError(
            where, got, f"at most {limit:.1%} of the records, each a conversation", "\n    ".join([*fixes[:3], general])
        )


@contextmanager
def quarantine_in(folder: Path) -> Iterator[Quarantine]:
    """Open quarantine.jsonl in a folder; remove it at the end if it is empty."""
    file = folder / FILE
    with file.open("w", encoding="utf-8") as stream:
        found = Quarantine(stream)
        yield found
    if not found.count:
        file.unlink()


def show_counts(counts: Mapping[str, int]) -> str:
    """Counts as words: 12 sharegpt, 3 alpaca."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())
