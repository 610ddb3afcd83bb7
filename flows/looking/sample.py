"""Sample of a file for a first look: its first records, and a random draw of the others."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tasks.curate.reading.bad_rows import BadRow, Quarantine, Record
from tasks.curate.reading.containers import Container, find_container, read_records
from tasks.curate.reading.files import data_files, known_tasks
from tasks.curate.reading.row_reader import RowReader
from tasks.curate.reading.settings import ReadSettings
from tasks.shared.formats.rows import Row

FIRST, DRAWN = 2000, 3000
"""Records that are always looked at, and most that are drawn from the rest."""


@dataclass
class Sample:
    """Records and rows that a look found.

    containers: of the files.  bytes: of all files.  records: number in the files.  rows: of the records looked at.
    held: the records of these rows, by file name.
    first, other: first record with a row, and first record of any kind, as they are in the file.  bad: records that cannot be read.
    unparsed: of them, those that are not even records: these were counted in the whole file.
    """

    containers: list[Container]
    reader: RowReader
    bytes: int = 0
    records: int = 0
    looked: int = 0
    rows: list[Row] = field(default_factory=list)
    held: list[tuple[str, Record]] = field(default_factory=list)
    first: Any = None
    other: Any = None
    bad: Quarantine = field(default_factory=Quarantine)
    unparsed: int = 0

    @property
    def whole(self) -> bool:
        """True if every record was looked at."""
        return self.looked == self.records

    @property
    def expected_rows(self) -> int:
        """Number of rows in the file; an estimate if only a sample was looked at."""
        parsed = self.records - self.unparsed
        looked = self.looked - (self.unparsed if self.whole else 0)
        return len(self.rows) if self.whole else round(parsed * len(self.rows) / max(1, looked))


def take_sample(path: str, settings: ReadSettings, seed: int = 0) -> Sample:
    """Read the first records of a file or folder, and a random draw of the others.

    Raises DataError for a file that is not a data set.
    """
    files = data_files("FILE", path)
    containers = [find_container(file, part, settings.encoding) for file, part in files]
    found = Sample(containers, RowReader(settings, known_tasks(path)), sum(file.stat().st_size for file, _ in files))
    drawn: list[tuple[str, Record]] = []
    rng = Random(seed)
    for name, record in _records(containers, settings):
        found.records += 1
        if record.error:
            found.bad.add(name, record, record.error)
            found.unparsed += 1
        elif found.records <= FIRST:
            _look(found, name, record)
        elif len(drawn) < DRAWN:
            drawn.append((name, record))
        elif (place := rng.randrange(found.records - FIRST)) < DRAWN:
            drawn[place] = (name, record)
    for name, record in sorted(drawn, key=lambda item: (item[0], item[1].line)):
        _look(found, name, record)
    if found.records <= FIRST + DRAWN:
        found.looked = found.records
    return found


def read_again(found: Sample, settings: ReadSettings) -> None:
    """Read the rows of a sample with other settings, which make no record unreadable."""
    found.reader = RowReader(settings, found.reader.known)
    found.rows = [found.reader.read(record, Path(name).name, "row") for name, record in found.held]


def _records(containers: list[Container], settings: ReadSettings) -> Iterator[tuple[str, Record]]:
    for container in containers:
        for record in read_records(container, settings.max_bytes):
            yield container.path.name, record


def _look(found: Sample, name: str, record: Record) -> None:
    found.looked += 1
    found.other = found.other or record.value
    try:
        found.rows.append(found.reader.read(record, Path(name).name, "row"))
    except BadRow as error:
        found.bad.add(name, record, error)
    else:
        found.held.append((name, record))
        if found.first is None:
            found.first = record.value
