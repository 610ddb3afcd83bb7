"""Records of JSON: one per line, elements of one array, or a list inside an object."""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import IO, Any

from tasks.curate.reading.bad_rows import BadRow, Record

BLOCK = 1 << 20
LONG_NUMBER = re.compile(rb"\d{19}")
"""Integers that some fast parsers read as floats."""
SPACE = " \t\r\n"


def parse_json(raw: bytes) -> Any:
    """Parse JSON in UTF-8; NaN and infinities become null.

    Raises BadRow with the reason and, for bytes that are not UTF-8, their place.
    """
    if (fast := _fast_parser()) and not LONG_NUMBER.search(raw):
        try:
            return fast(raw)
        except ValueError:  # what the fast parser refuses, the standard library reads or explains
            pass
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        guess = raw[max(0, error.start - 20) : error.end + 20].decode("cp1252", "replace")
        raise BadRow(
            "not UTF-8", f"{error.reason} at byte {error.start} of the line ({guess!r} in cp1252)",
            "save the file as UTF-8, or name its encoding: encoding=cp1252",
        ) from error  # fmt: skip
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except ValueError as error:
        raise _not_json(error, text) from error
    except RecursionError as error:
        raise BadRow("not JSON that can be read", "nested too deeply") from error


def _fast_parser() -> Callable[[bytes], Any] | None:
    try:
        import orjson
    except ImportError:
        return None
    return orjson.loads


def _not_json(error: ValueError, text: str) -> BadRow:
    if "\0" in text:
        return BadRow("NUL bytes in the line", "the file was cut off or is not text", "delete these lines")
    reason = str(error)
    for pattern, words in (
        ("Extra data", "JSON followed by other text"),
        ("Invalid control character", "a raw control character inside a JSON string"),
        ("property name enclosed in double quotes", "not JSON: quotes must be double"),
    ):
        if pattern in reason:
            python = "Python's str() wrote it: write json.dumps(row) instead" if text.startswith("{'") else ""
            return BadRow(words, reason, python)
    return BadRow("not JSON", reason)


def read_lines(stream: IO[bytes], limit: int, encoding: str = "utf-8") -> Iterator[Record]:
    """Yield a record per line; blank lines are skipped.

    limit: bytes of the longest line that is parsed.
    """
    offset, number = 0, 0
    while raw := stream.readline(limit + 1):
        number += 1
        start, size = offset, len(raw)
        if size > limit and not raw.endswith(b"\n"):
            head = raw[:200].decode("utf-8", "replace")
            for more in iter(lambda: stream.readline(BLOCK), b""):
                size += len(more)
                if more.endswith(b"\n"):
                    break
            offset += size
            detail = f"{size / 1e6:.0f} MB, the limit is {limit / 1e6:.0f} MB"
            fix = f"split the row, or raise the limit: max_line_mb={size // 1_000_000 + 1}"
            yield Record(number, start, error=BadRow("a line over the limit", detail, fix), text=head)
            continue
        offset += size
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        raw = raw.strip()
        if raw.endswith(b"},"):  # an element of an array whose brackets were left out
            raw = raw[:-1]
        if raw:
            yield _record(number, start, raw, encoding)


def _record(number: int, offset: int, raw: bytes, encoding: str) -> Record:
    try:
        return Record(number, offset, parse_json(raw if encoding == "utf-8" else raw.decode(encoding).encode()))
    except BadRow as error:
        return Record(number, offset, error=error, text=raw.decode("utf-8", "backslashreplace"))
    except UnicodeDecodeError as error:
        bad = BadRow(f"not {encoding}", f"{error.reason} at byte {error.start} of the line")
        return Record(number, offset, error=bad, text=raw.decode("latin-1"))


def read_values(stream: IO[bytes], limit: int, encoding: str = "utf-8") -> Iterator[Record]:
    """Yield the elements of a JSON array, or JSON values one after another; holds one at a time.

    limit: bytes of the largest element.
    Raises BadRow at the first fault: what follows it cannot be told apart.
    """
    scanner = _Scanner(stream, limit, encoding)
    in_array = scanner.peek() == "["
    if in_array:
        scanner.skip(1)
    while (letter := scanner.peek()) and not (in_array and letter == "]"):
        if in_array and letter == ",":
            scanner.skip(1)
            continue
        line, offset = scanner.line, scanner.offset
        try:
            value = scanner.value()
        except BadRow as error:
            raise BadRow(error.reason, f"line {line}: {error.detail}", error.fix) from error
        yield Record(line, offset, value)
    if in_array and not letter:
        raise BadRow("the JSON array is cut off", f"line {scanner.line}: no closing bracket", "copy the file again")


class _Scanner:
    """A position in a stream of JSON text, with as much of it as the next value needs."""

    def __init__(self, stream: IO[bytes], limit: int, encoding: str) -> None:
        self.stream, self.limit = stream, limit
        self.decode = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)(errors="strict")
        self.encoding = encoding
        self.text, self.place, self.line, self.offset, self.ended = "", 0, 1, 0, False
        self.parser = json.JSONDecoder(parse_constant=lambda _: None)

    def peek(self) -> str:
        """Return the next letter that is not white space; empty at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in SPACE:
                self.skip(1)
            if self.place < len(self.text) or not self._more():
                return self.text[self.place : self.place + 1]

    def skip(self, count: int) -> None:
        """Move forward, counting lines and bytes."""
        passed = self.text[self.place : self.place + count]
        self.line += passed.count("\n")
        self.offset += len(passed.encode("utf-8", "surrogatepass"))
        self.place += count

    def value(self) -> Any:
        """Parse the value at the position and move behind it.  Raises BadRow."""
        while True:
            try:
                found, end = self.parser.raw_decode(self.text, self.place)
            except RecursionError as error:
                raise BadRow("not JSON that can be read", "nested too deeply") from error
            except ValueError as error:
                if len(self.text) - self.place > self.limit:
                    detail = f"the limit is {self.limit / 1e6:.0f} MB"
                    raise BadRow("an element over the limit, or a fault in it", detail, "max_line_mb=...") from error
                if not self._more():
                    raise _not_json(error, self.text[self.place : self.place + 1000]) from error
                continue
            if end == len(self.text) and self._more():  # a number could go on
                continue
            self.skip(end - self.place)
            return found

    def _more(self) -> bool:
        """Read the next block; double the text as long as a value does not end."""
        if self.ended:
            return False
        size = max(BLOCK, len(self.text) - self.place)
        raw = self.stream.read(size)
        self.ended = not raw
        try:
            more = self.decode.decode(raw, final=self.ended)
        except UnicodeDecodeError as error:
            raise BadRow(
                f"not {self.encoding.upper()}", f"{error.reason}", "name the encoding: encoding=cp1252"
            ) from error
        self.text, self.place = self.text[self.place :] + more, 0
        return bool(more)
