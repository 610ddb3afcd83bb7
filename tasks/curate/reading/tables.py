"""Records of delimited text: encoding, delimiter and header are detected."""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from tasks.curate.reading.bad_rows import BadRow, Record

DELIMITERS = (",", "\t", ";", "|")
NAMES = {",": "CSV", "\t": "TSV", ";": "CSV with semicolons", "|": "text separated by |"}
SAMPLE = 1 << 18
RUNS = 0.5
"""Largest share of a Western text's letters beyond ASCII that stand in runs of three or more."""
KNOWN = frozenset({
    "text", "utterance", "label", "intent", "category", "class", "question", "answer", "prompt", "completion",
    "response", "instruction", "input", "output", "query", "context", "id", "user", "assistant", "system", "messages",
    "conversations", "chosen", "rejected", "sentence", "target", "reply", "message", "summary", "document", "title",
})  # fmt: skip
"""Names that only a header has."""


@dataclass(frozen=True)
class Dialect:
    """Form of a delimited file.

    header: False if the first line is a row.  skip: lines before the header, such as Excel's "sep=;".
    """

    encoding: str
    delimiter: str
    columns: tuple[str, ...]
    header: bool
    skip: int = 0

    @property
    def words(self) -> str:
        """Format as words: CSV in cp1252, without a header."""
        return f"{NAMES[self.delimiter]} in {self.encoding}" + ("" if self.header else ", without a header")


def find_encoding(stream: IO[bytes]) -> str:
    """Find the encoding of a text; "" for text that is neither UTF-8 nor in a Western alphabet.

    By its byte order mark, UTF-8 if it is valid, else cp1252 or latin-1.
    Text that holds valid UTF-8 beyond ASCII and faults besides is UTF-8 with bad lines.
    In Western text, letters beyond ASCII stand alone or in pairs; in Shift-JIS, GB 18030 or Cyrillic code pages they stand in runs.
    """
    good, bad, undefined = 0, 0, False
    beyond, in_runs = 0, 0
    for number, raw in enumerate(iter(lambda: stream.readline(SAMPLE), b"")):
        if number == 0 and raw.startswith(codecs.BOM_UTF8):
            return "utf-8-sig"
        if number == 0 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        if raw.isascii():
            continue
        try:
            raw.decode("utf-8")
            good += 1
        except UnicodeDecodeError:
            bad += 1
            undefined = undefined or bool(re.search(rb"[\x81\x8d\x8f\x90\x9d]", raw))
            runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", raw)]
            beyond, in_runs = beyond + sum(runs), in_runs + sum(run for run in runs if run > 2)
    if good or not bad:
        return "utf-8"
    if in_runs > RUNS * beyond:
        return ""
    return "latin-1" if undefined else "cp1252"


def find_dialect(head: bytes, encoding: str) -> Dialect | None:
    """Find delimiter and header in the beginning of a file; None if it is not a table.

    head: up to SAMPLE bytes.
    """
    text = head.decode(encoding, "replace")
    if len(head) >= SAMPLE:  # the last line may be cut
        text = text[: text.rfind("\n") + 1] or text
    named = re.match(r"sep=(.)\r?\n", text)
    skip = 1 if named else 0
    if named:
        text = text[named.end() :]
    best: tuple[float, int, str, list[list[str]]] | None = None
    for delimiter in (named[1],) if named and named[1] in DELIMITERS else DELIMITERS:
        rows = _rows(text, delimiter)
        widths = Counter(len(row) for row in rows)
        width, count = max(widths.items(), key=lambda item: (item[1] * (item[0] > 1), item[0]), default=(0, 0))
        share = count / len(rows) if rows else 0.0
        if width > 1 and share >= 0.7 and (best is None or (share, width) > best[:2]):
            best = (share, width, delimiter, [row for row in rows if len(row) == width])
    if best is None:
        lines = [line for line in text.splitlines() if line.strip()]
        if lines and lines[0].strip().strip('"').lower() in KNOWN:  # a table of one column
            return Dialect(encoding, ",", (lines[0].strip().strip('"'),), header=True, skip=skip)
        return None
    first = [cell.strip() for cell in best[3][0]]
    header = _is_header(first, best[3][1:])
    names = tuple(
        f"{cell}_{place}" if cell in first[: place - 1] else cell or f"column{place}"
        for place, cell in enumerate(first, 1)
    )
    numbered = tuple(f"column{place}" for place in range(1, len(first) + 1))
    return Dialect(encoding, best[2], names if header else numbered, header, skip)


def cell_counts(head: bytes, encoding: str) -> tuple[str, dict[int, int]]:
    """Return the delimiter that splits most lines of a text, and the lines by number of cells.

    "" if none splits most lines.
    """
    text = head.decode(encoding, "replace")
    found = {delimiter: Counter(len(row) for row in _rows(text, delimiter)) for delimiter in DELIMITERS}
    best = max(DELIMITERS, key=lambda delimiter: sum(found[delimiter].values()) - found[delimiter][1])
    split = sum(count for width, count in found[best].items() if width > 1)
    return (best, dict(sorted(found[best].items()))) if 2 * split > sum(found[best].values()) else ("", {})


def _rows(text: str, delimiter: str) -> list[list[str]]:
    found = []
    try:
        for row in csv.reader(io.StringIO(text), delimiter=delimiter):
            if row:
                found.append(row)
            if len(found) == 200:
                break
    except csv.Error:
        pass
    return found


def _is_header(first: list[str], rest: list[list[str]]) -> bool:
    if any(len(cell) > 60 for cell in first):
        return False
    if any(cell.lower() in KNOWN for cell in first):
        return True
    if len(set(first)) < len(first):
        return False
    if any(re.fullmatch(r"[-+\d.,%]+", cell) for cell in first):
        return False
    seen = [{row[place] for row in rest} for place in range(len(first))]
    repeated = any(cell in values for cell, values in zip(first, seen, strict=True))
    wordy = any(len(cell.split()) > 4 or cell.endswith((".", "?", "!")) for cell in first)
    return not repeated and not wordy


class _Lines:
    """Lines of a table as text, with pushing back, for csv.reader."""

    def __init__(self, stream: IO[bytes], encoding: str, limit: int) -> None:
        self.stream, self.limit = stream, limit
        self.decode = "utf-8" if encoding == "utf-8-sig" else encoding
        self.back: list[tuple[int, int, str]] = []
        self.current: list[tuple[int, int, str]] = []
        self.number, self.offset = 0, 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if not self.back:
            self._read()
        item = self.back.pop(0)
        self.current.append(item)
        if sum(len(text) for _, _, text in self.current[-2:]) > self.limit or len(self.current) > LONGEST_RECORD:
            raise csv.Error("the record does not end: an opening quote without a closing one")
        return item[2]

    def _read(self) -> None:
        raw = self.stream.readline()
        if not raw:
            raise StopIteration
        self.number += 1
        text = raw.decode(self.decode, "surrogateescape")
        if self.number == 1:
            text = text.removeprefix("\ufeff")
        self.back.append((self.number, self.offset, text))
        self.offset += len(raw)

    def restart(self) -> None:
        """Read the lines of the current record again, except the first."""
        self.back = self.current[1:] + self.back
        self.current = []


LONGEST_RECORD = 2000
"""Lines of one record from which an unclosed quote is assumed."""


def read_table(stream: IO[bytes], dialect: Dialect, limit: int) -> Iterator[Record]:
    """Yield a record per row: cells by column.

    limit: characters of the longest cell.  A row with an unclosed quote is bad by itself; the rows behind it are read.
    """
    csv.field_size_limit(max(limit, 131_072))
    if dialect.encoding == "utf-16":
        stream = io.BytesIO(stream.read().decode("utf-16").encode())
    lines = _Lines(stream, "utf-8" if dialect.encoding == "utf-16" else dialect.encoding, limit)
    for _ in range(dialect.skip):
        next(lines, None)
    lines.current = []
    waiting = dialect.header
    while True:
        try:
            row = next(csv.reader(lines, delimiter=dialect.delimiter, strict=True))
        except StopIteration:
            return
        except csv.Error as error:
            line, offset, text = lines.current[0]
            bad = BadRow("unbalanced quotes in a table", str(error), 'double the quotes inside a cell: ""')
            yield Record(line, offset, error=bad, text=text)
            lines.restart()
            continue
        (line, offset, _), text = lines.current[0], "".join(item[2] for item in lines.current)
        lines.current = []
        if waiting:
            waiting = False
        elif any(cell.strip() for cell in row):
            yield _row(line, offset, row, dialect, text)


def _row(line: int, offset: int, row: list[str], dialect: Dialect, text: str) -> Record:
    width = len(dialect.columns)
    while len(row) > width and not row[-1].strip():
        row = row[:-1]
    if len(row) != width:
        bad = BadRow(
            "a row with too many or too few cells",
            f"{len(row)} instead of {width}",
            "quote cells that hold the delimiter",
        )
        return Record(line, offset, error=bad, text=text)
    if re.search("[\udc80-\udcff]", text):
        bad = BadRow(
            "not UTF-8", "bytes of another encoding", "save the file as UTF-8, or name its encoding: encoding=cp1252"
        )
        return Record(line, offset, error=bad, text=text)
    return Record(line, offset, dict(zip(dialect.columns, row, strict=True)), text=text)
