"""A look at the beginning of files before they are read: number of records, and first rows."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean

from tasks.curate.reading.bad_rows import BadRow, Quarantine, Record
from tasks.curate.reading.containers import PACKED, Container, find_container, read_records
from tasks.curate.reading.files import data_files, known_tasks
from tasks.curate.reading.row_reader import RowReader
from tasks.curate.reading.settings import ReadSettings
from tasks.shared.errors import StillroomError
from tasks.shared.forecast import CHARACTERS_PER_TOKEN, LONG_ROW_TOKENS, ROW_TOKENS
from tasks.shared.formats.rows import Row
from tasks.shared.items import RowSample

COUNTED_BYTES = 1 << 20
"""Bytes at the beginning of a file whose records are counted for a forecast."""
UNPACKED_BYTES = 1 << 24
"""Bytes of a packed file's content that show how well it packs; readers fetch its bytes in blocks of 128 kB."""
BATCH = 500
"""First records of a Parquet file whose characters are counted: those that are read together."""
PREVIEWED = 5000
"""Most records that a plan reads."""
PREVIEWED_BYTES = 1 << 25


def rows_in(path: str, encoding: str = "") -> int:
    """Return the number of records of a file or folder, at least 1; 0 without a path.

    A file of more than a megabyte is extrapolated from that much.  What cannot be read counts as one: the step reports it.
    """
    return max(1, sum(glance.records for glance in _glances(path, encoding))) if path else 0


def tokens_in(path: str, encoding: str = "") -> tuple[int, int]:
    """Return mean and longest tokens of a file's first records.

    If they are not known: the defaults of `Rows`.
    Their characters are counted, names of fields and all.
    """
    found = [glance for glance in _glances(path, encoding) if glance.longest]
    if not found:
        return ROW_TOKENS, LONG_ROW_TOKENS
    mean = sum(glance.mean * glance.records for glance in found) / sum(glance.records for glance in found)
    return max(1, round(mean / CHARACTERS_PER_TOKEN)), max(glance.longest for glance in found) // CHARACTERS_PER_TOKEN


@dataclass(frozen=True)
class Glance:
    """Number of a file's records, and characters of its first ones."""

    records: int
    longest: int = 0
    mean: float = 0.0


def _glances(path: str, encoding: str) -> list[Glance]:
    """Records and characters by file; empty for what cannot be read."""
    if not path:
        return []
    try:
        files = [(file, part, file.stat()) for file, part in data_files("path", path)]
        return [_glance(file, part, encoding, state.st_size, state.st_mtime_ns) for file, part, state in files]
    except (StillroomError, OSError):
        return []


@lru_cache(maxsize=64)
def _glance(file: Path, part: str, encoding: str, size: int, _changed: int) -> Glance:
    """Records and characters of a file.

    The last argument only tells its versions apart.
    """
    found = find_container(file, part, encoding)
    if found.form == "parquet" and not found.packing:
        from pyarrow import parquet

        first = [len(str(record.value)) for record in itertools.islice(read_records(found, COUNTED_BYTES), BATCH)]
        return Glance(int(parquet.ParquetFile(file).metadata.num_rows), max(first, default=0), fmean(first or [0]))
    count = longest = total = 0
    for record in read_records(found, COUNTED_BYTES):
        if record.offset > COUNTED_BYTES:
            return Glance(round(_unpacked_bytes(found, size) * count / record.offset), longest, total / max(1, count))
        characters = len(str(record.value))
        count, longest, total = count + 1, max(longest, characters), total + characters
    return Glance(count, longest, total / max(1, count))


def _unpacked_bytes(found: Container, size: int) -> float:
    """Size of the content of a file, extrapolated from its beginning if it is packed."""
    opener = next((opener for name, opener in PACKED.values() if name == found.packing), None)
    if opener is None:
        return float(size)
    with found.path.open("rb") as packed, opener(packed) as stream:  # type: ignore[operator]
        content = len(stream.read(UNPACKED_BYTES))
        return size * content / max(1, packed.tell())


def preview_rows(path: str, settings: ReadSettings) -> RowSample:
    """Return the rows at the beginning of a file or folder, read as the step would read them.

    Raises DataError for files that are no data, or, if all of them were read, too many bad records.
    """
    containers = [find_container(file, part, settings.encoding) for file, part in data_files("path", path)]
    reader, bad, rows = RowReader(settings, known_tasks(path)), Quarantine(), list[Row]()
    records = _records(containers, settings.max_bytes)
    read = 0
    for container, record in itertools.islice(records, PREVIEWED):
        read += 1
        try:
            rows.append(reader.read(record, container.path.name, "row"))
        except BadRow as error:
            bad.add(container.path.name, record, error)
        if record.offset > PREVIEWED_BYTES:
            break
    whole = next(records, None) is None
    if whole:
        bad.check(path, read, settings.max_quarantined)
        reader.check(path)
    return RowSample(path, tuple(rows), dict(reader.tasks), whole)


def _records(containers: list[Container], limit: int) -> Iterator[tuple[Container, Record]]:
    for container in containers:
        for record in read_records(container, limit):
            yield container, record
