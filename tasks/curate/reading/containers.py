"""Files by their content: what a file is, whatever it is called, and its records one by one."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from tasks.curate.reading.bad_rows import BadRow, Record
from tasks.curate.reading.json_records import parse_json, read_lines, read_values
from tasks.curate.reading.tables import SAMPLE, Dialect, find_dialect, find_encoding, read_table
from tasks.shared.errors import DataError

PACKED = {b"\x1f\x8b": ("gzip", gzip.open), b"BZh": ("bzip2", bz2.open), b"\xfd7zXZ": ("xz", lzma.open)}
STRANGE = (
    (b"PK\x03\x04", "a ZIP archive, or an Excel or Word file", "unpack it; save a sheet of Excel as CSV UTF-8"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "unpack it: zstd -d FILE"),
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "git lfs pull"),
    (b"%PDF", "a PDF file", "extract conversations from it first"),
    (b"SQLite format 3", "an SQLite database", "export a table as CSV or JSON lines"),
    (b"ARROW1", "an Arrow file", "save it as Parquet: dataset.to_parquet('data.parquet')"),
    (b"\x80\x04", "a Python pickle, which may run code", "save it as JSON lines or Parquet"),
    (b"\x89PNG", "an image", "give a file of conversations"),
    (b"<!DOCTYPE", "an HTML page, perhaps instead of a download", "download the raw file"),
    (b"<html", "an HTML page, perhaps instead of a download", "download the raw file"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file", "save a sheet of Excel as CSV UTF-8"),
)
WANTED = "JSON lines, a JSON array, CSV, TSV or Parquet; each may be gzipped"
OBJECT_LIMIT = 1 << 30
"""Bytes of a JSON object that holds the rows in a list: it is read whole."""


@dataclass(frozen=True)
class Container:
    """A file as it is: packing, form, and what the form needs to be read.

    form: "json lines", "json array", "json values" (over several lines), "json object", "table" or "parquet".  part: list of a JSON
    object that holds the rows.
    """

    path: Path
    packing: str
    form: str
    encoding: str = "utf-8"
    dialect: Dialect | None = None
    part: str = ""

    @property
    def words(self) -> str:
        """Format as words, such as gzip'ed JSON lines."""
        names = {
            "json lines": "JSON lines",
            "json array": "a JSON array",
            "json values": "JSON objects over several lines",
            "json object": f"a JSON object with the rows in {self.part!r}",
            "parquet": "Parquet",
        }
        words = self.dialect.words if self.dialect else names[self.form]
        if not self.dialect and self.encoding != "utf-8":
            words += f" in {self.encoding}"
        suffix = self.path.suffix.lower()
        if self.form == "parquet" and suffix in {".jsonl", ".json", ".csv", ".tsv", ".txt"}:
            words += f" (although it is called {suffix})"
        return f"{self.packing}ped {words}".replace("gzipped ", "gzip'ed ") if self.packing else words

    def open(self) -> IO[bytes]:
        """Open the unpacked content."""
        opener = next((found[1] for found in PACKED.values() if found[0] == self.packing), None)
        return opener(self.path, "rb") if opener else self.path.open("rb")  # type: ignore[return-value,operator]


def split_part(path: str) -> tuple[str, str]:
    """Split file.json#train into the file and the list of it to read."""
    if "#" not in path or Path(path).expanduser().exists():
        return path, ""
    file, _, part = path.rpartition("#")
    return file, part


def find_container(path: Path, part: str = "", encoding: str = "") -> Container:
    """Find out what a file is, by its content.

    part: list to read of a JSON object.  encoding: of a text, if it is known.
    Raises DataError that names what the file is instead of data, or that it is empty.
    """
    with path.open("rb") as stream:
        start = stream.read(64)
    packing = next((name for magic, (name, _) in PACKED.items() if start.startswith(magic)), "")
    whole = Container(path, packing, "json lines")
    try:
        with whole.open() as stream:
            head = stream.read(SAMPLE)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(str(path), f"a damaged {packing or 'file'}: {error}", WANTED, "copy the file again") from error
    for magic, words, fix in STRANGE:
        if head.startswith(magic):
            raise DataError(str(path), words, WANTED, fix)
    if head.startswith(b"PAR1"):
        return replace(whole, form="parquet")
    if not head.strip(b"\0 \t\r\n\xef\xbb\xbf"):
        got = "only NUL bytes: the file was not written to the end" if b"\0" in head else "no rows: the file is empty"
        raise DataError(str(path), got, "at least one conversation", "check the step that writes it")
    return _text(whole, head, part, encoding)


def _text(whole: Container, head: bytes, part: str, encoding: str) -> Container:
    if not encoding:
        with whole.open() as stream:
            encoding = _utf16(head) or find_encoding(stream)
    plain = "utf-8" if encoding == "utf-8-sig" else encoding
    text = head.decode(encoding, "replace").lstrip("\ufeff \t\r\n")
    as_json = replace(whole, encoding=plain)
    if text.startswith(("{", "[")) and plain.startswith("utf-16"):
        return _values(as_json, text, part)
    if text.startswith(("{", "[")):
        first = text.partition("\n")[0].strip()
        if _whole_value(first):
            single = not text.partition("\n")[2].strip() and len(head) < SAMPLE
            return _values(as_json, text, part) if single and _holds_rows(first) else as_json
        return _values(as_json, text, part)
    dialect = find_dialect(head, encoding)
    if dialect is None and '{"' in text:
        return as_json  # bad lines before the first good one
    if dialect is None:
        got = f"text without columns: {text.splitlines()[0][:80]!r}"
        raise DataError(str(whole.path), got, WANTED, "name its columns, or write one JSON object per line")
    return replace(as_json, encoding=encoding, form="table", dialect=dialect)


def _utf16(head: bytes) -> str:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return ""


def _whole_value(line: str) -> bool:
    """Return True if a line is a JSON value by itself, or broken in itself: then lines are records."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos < len(line) and not line.rstrip().endswith(("{", "[", ",")) and line.count('"') % 2 == 0
    return True


def _values(found: Container, head: str, part: str) -> Container:
    """A JSON array, values one after another over several lines, or one object with a list."""
    if head.startswith("["):
        return replace(found, form="json array")
    if part or _is_one_object(found):
        content = _load_object(found)
        if part or _has_rows(content):
            return replace(found, form="json object", part=part or _only_list(found.path, content))
    return replace(found, form="json values")


def _holds_rows(line: str) -> bool:
    """Return True if the only line of a file is an array, or an object with a list of rows."""
    try:
        content = json.loads(line)
    except ValueError:
        return False
    return isinstance(content, list) or (isinstance(content, dict) and _has_rows(content))


def _has_rows(content: dict[str, Any]) -> bool:
    """Return True if an object has a list of records; the turns of one conversation are none."""
    lists = [
        value for value in content.values() if isinstance(value, list) and value and isinstance(value[0], dict | list)
    ]
    return bool(lists) and not any(
        isinstance(found[0], dict) and {"role", "from", "speaker"} & found[0].keys() for found in lists
    )


def _is_one_object(found: Container) -> bool:
    """Return True if the file is one JSON object and nothing else."""
    with found.open() as stream:
        size = 0
        last = b""
        depth_one = False
        for block in iter(lambda: stream.read(1 << 20), b""):
            size += len(block)
            last = (last + block)[-64:]
            depth_one = depth_one or b"}\n{" in block or b"}\r\n{" in block
            if size > OBJECT_LIMIT:
                return False
    return last.rstrip().endswith(b"}") and not depth_one


def _load_object(found: Container) -> dict[str, Any]:
    with found.open() as stream:
        raw = stream.read()
    try:
        content = parse_json(
            raw.removeprefix(codecs.BOM_UTF8) if found.encoding == "utf-8" else raw.decode(found.encoding).encode()
        )
    except BadRow as error:
        raise DataError(str(found.path), f"a JSON object that cannot be read: {error}", WANTED, error.fix) from error
    return content if isinstance(content, dict) else {}


def _only_list(path: Path, content: dict[str, Any]) -> str:
    lists = [name for name, value in content.items() if isinstance(value, list) and value]
    if len(lists) == 1:
        return lists[0]
    named = ", ".join(f"{name} ({len(content[name])})" for name in lists)
    raise DataError(
        str(path), f"a JSON object with several lists: {named}", "the list to read", f"{path.name}#{lists[0]}"
    )


def read_records(found: Container, limit: int) -> Iterator[Record]:
    """Yield the records of a file.

    limit: bytes of the longest line or element.
    Raises DataError for a damaged archive or Parquet file.
    """
    try:
        if found.form == "parquet":
            yield from _parquet(found)
            return
        with found.open() as stream:
            if found.form == "json lines":
                yield from read_lines(stream, limit, found.encoding)
            elif found.form in {"json array", "json values"}:
                yield from read_values(stream, limit, found.encoding)
            elif found.form == "table" and found.dialect:
                yield from read_table(stream, found.dialect, limit)
            else:
                yield from _listed(found)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(
            str(found.path), f"a damaged {found.packing} file: {error}", WANTED, "copy the file again"
        ) from error


def _listed(found: Container) -> Iterator[Record]:
    content: Any = _load_object(found)
    for name in [found.part] if isinstance(content, dict) and found.part in content else found.part.split("."):
        if not isinstance(content, dict) or name not in content:
            known = ", ".join(content) if isinstance(content, dict) else "no lists"
            raise DataError(
                f"{found.path}#{found.part}", f"no list {name!r} in this file", known, "correct the name after #"
            )
        content = content[name]
    for number, value in enumerate(content if isinstance(content, list) else [], start=1):
        yield Record(number, -1, value)


def _parquet(found: Container) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        with found.open() as stream:
            file = parquet.ParquetFile(io.BytesIO(stream.read()) if found.packing else found.path)
        number = 0
        for batch in file.iter_batches(batch_size=500):
            for value in batch.to_pylist():
                number += 1
                yield Record(number, -1, without_nulls(value))
    except (pyarrow.ArrowException, OSError) as error:
        got = f"a damaged Parquet file: {str(error).splitlines()[0][:200]}"
        raise DataError(str(found.path), got, WANTED, "copy the file again; it must end with PAR1") from error


def without_nulls(value: Any) -> Any:
    """Drop null fields of objects, with which Arrow fills the fields of other rows."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
