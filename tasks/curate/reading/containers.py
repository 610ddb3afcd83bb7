"""Kind of a file by its content, not its name, and its records one by one."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from tasks.curate.reading.bad_rows import BadRow, Record
from tasks.curate.reading.json_forms import LINES, has_rows, holds_records, is_one_object, json_form
from tasks.curate.reading.json_records import parse_json, read_lines, read_values
from tasks.curate.reading.tables import SAMPLE, Dialect, cell_counts, find_dialect, find_encoding, read_table
from tasks.shared.errors import DataError

PACKED = {b"\x1f\x8b": ("gzip", gzip.open), b"BZh": ("bzip2", bz2.open), b"\xfd7zXZ": ("xz", lzma.open)}
STRANGE = (
    (b"PK\x03\x04", "a ZIP archive, or an Excel or Word file", "unpack it; save a sheet of Excel as CSV UTF-8"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "unpack it: zstd -d FILE"),
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "git lfs pull"),
    (codecs.BOM_UTF32_LE, "text in UTF-32", "save it as UTF-8: iconv -f utf-32 -t utf-8 FILE"),
    (codecs.BOM_UTF32_BE, "text in UTF-32", "save it as UTF-8: iconv -f utf-32 -t utf-8 FILE"),
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


@dataclass(frozen=True)
class Container:
    """A data file: its packing, its form, and what reading that form needs.

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
        return opener(self.path, "rb") if opener else self.path.open("rb")  # type: ignore[operator]


def split_part(path: str) -> tuple[str, str]:
    """Split file.json#train into the file and the list of it to read."""
    if "#" not in path or Path(path).expanduser().exists():
        return path, ""
    file, _, part = path.rpartition("#")
    return file, part


def find_container(path: Path, part: str = "", encoding: str = "") -> Container:
    """Return packing and form of a file, by its content.

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
    wide = _wide(head)
    as_json = replace(whole, encoding=(encoding or wide or "utf-8").replace("utf-8-sig", "utf-8"))
    text = head.decode(as_json.encoding, "replace").lstrip("\ufeff \t\r\n")
    if text.startswith(("{", "[")):
        return _json(as_json, text, part, whole_file=len(head) < SAMPLE)
    if not encoding:
        with whole.open() as stream:
            encoding = wide or find_encoding(stream)
        if not encoding:
            got = f"text that is neither UTF-8 nor in a Western encoding: {head.splitlines()[-1][:40]!r}"
            fix = "name its encoding, such as encoding=shift_jis, gb18030, big5, euc-kr, cp1251 (Cyrillic) or cp1253 (Greek)"
            raise DataError(str(whole.path), got, WANTED, fix)
    lines = [line.strip() for line in text.splitlines()[:LINES] if line.strip()]
    if holds_records(lines):
        return as_json  # bad lines before the first good one
    dialect = find_dialect(head, encoding)
    if dialect is None and b"\r" in head and b"\n" not in head:
        got = "lines that end with carriage returns alone, as on old Macs"
        raise DataError(str(whole.path), got, WANTED, f"tr '\\r' '\\n' < {whole.path.name} > new{whole.path.suffix}")
    if dialect is None and (cells := cell_counts(head, encoding))[0]:
        widths = ", ".join(f"{count} with {width}" for width, count in list(cells[1].items())[:6])
        got = f"text whose lines, split at {cells[0]!r}, have different numbers of cells: {widths}"
        raise DataError(
            str(whole.path), got, WANTED, "quote cells that hold the delimiter, and give every line the header's cells"
        )
    if dialect is None:
        got = f"text without columns: {text.splitlines()[0][:80]!r}"
        raise DataError(str(whole.path), got, WANTED, "name its columns, or write one JSON object per line")
    return replace(as_json, encoding=encoding, form="table", dialect=dialect)


def _wide(head: bytes) -> str:
    """UTF-16 by its byte order mark, or by the zeros between Latin letters."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    start = head[:200]
    if len(start) > 3 and b"\0" in start:
        for encoding, zeros, letters in (
            ("utf-16-le", start[1::2], start[::2]),
            ("utf-16-be", start[::2], start[1::2]),
        ):
            if zeros.count(0) > 0.6 * len(zeros) and letters.count(0) < 0.1 * len(letters):
                return encoding
    return ""


def _json(found: Container, text: str, part: str, whole_file: bool) -> Container:
    """Container of a JSON file, in one of its forms."""
    form = json_form(text, whole_file)
    if part or form == "json values":
        content = _load_object(found) if part or is_one_object(found.open) else {}
        if part or has_rows(content):
            return replace(found, form="json object", part=part or _only_list(found.path, content))
    return replace(found, form="json values" if form == "json lines" and "utf-16" in found.encoding else form)


def _load_object(found: Container) -> dict[str, Any]:
    with found.open() as stream:
        raw = stream.read()
    if found.encoding != "utf-8":
        raw = raw.decode(found.encoding).encode()
    try:
        content = parse_json(raw.removeprefix(codecs.BOM_UTF8))
    except BadRow as error:
        raise DataError(str(found.path), f"a JSON object that cannot be read: {error}", WANTED, error.fix) from error
    return content if isinstance(content, dict) else {}


def _only_list(path: Path, content: dict[str, Any]) -> str:
    lists = [name for name, value in content.items() if isinstance(value, list) and value and name != "features"]
    if len(lists) == 1:
        return lists[0]
    named = ", ".join(f"{name} ({len(content[name])})" for name in lists)
    got = f"a JSON object with several lists: {named}"
    largest = max(lists, key=lambda name: len(content[name]))
    raise DataError(str(path), got, "the name of one list, after a #", f"{path.name}#{largest}")


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
                yield from _values(found, stream, limit)
            elif found.form == "table" and found.dialect:
                yield from read_table(stream, found.dialect, limit)
            else:
                yield from _listed(found)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(
            str(found.path), f"a damaged {found.packing} file: {error}", WANTED, "copy the file again"
        ) from error


def _values(found: Container, stream: IO[bytes], limit: int) -> Iterator[Record]:
    try:
        yield from read_values(stream, limit, found.encoding)
    except BadRow as error:
        got = f"{error}; what follows cannot be told apart"
        fix = (
            error.fix
            or f"correct it, or write one object per line, which is read past bad ones: jq -c '.[]' {found.path.name}"
        )
        raise DataError(str(found.path), got, "valid JSON", fix) from error


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
