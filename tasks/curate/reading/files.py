"""Files to rows, one at a time: what was read, what went to quarantine, and ids made unique."""

import hashlib
import json
import logging
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.curate.reading.bad_rows import BadRow, Quarantine, show_counts
from tasks.curate.reading.containers import find_container, read_records, split_part
from tasks.curate.reading.row_reader import RowReader
from tasks.shared.errors import DataError
from tasks.shared.formats.rows import Row
from tasks.shared.formats.tasks import FILE as TASKS_FILE
from tasks.shared.formats.tasks import Task, read_tasks
from tasks.shared.paths import user_path

ROWS_PER_S = 15_000
"""Rows read in a second."""
SKIPPED = (".md", ".txt", ".py", ".yaml", ".yml", ".lock", ".html")
"""Files of a folder that hold no data; a single file may have any name."""
SPLIT_NAMES = {
    "train": "train", "training": "train", "test": "test", "validation": "calibration", "valid": "calibration", "val": "calibration",
    "dev": "calibration", "calibration": "calibration",
}  # fmt: skip
"""Names of files in a folder of splits, and the setting that takes each."""
log = logging.getLogger(__name__)


def data_files(where: str, path: str) -> list[tuple[Path, str]]:
    """Return the files that a setting names, each with the list in it to read (file.json#train).

    where: the setting.  path: a file, or a folder of files of the same kind.
    Raises DataError for a path that does not exist, or a folder with splits or without data.
    """
    name, part = split_part(path)
    file = user_path(name)
    if file.is_file():
        return [(file, part)]
    if not file.is_dir():
        raise DataError(
            f"{where}={path}", "no such file", "a file or folder of conversations",
            "check the path; a relative path starts at the current folder or at the project",
        )  # fmt: skip
    files = sorted(found for found in file.iterdir() if _is_data(found))
    splits = [found.name for found in files if _split_of(found)]
    if not files or splits:
        got = f"a folder with splits: {', '.join(splits)}" if splits else "a folder without data files"
        raise DataError(
            f"{where}={path}",
            got,
            "a file, or a folder whose files are one data set",
            "name the files: train=..., test=...",
        )
    return [(found, part) for found in files]


def split_files(path: str) -> dict[str, str]:
    """Return the files of a folder with splits, by setting; empty for anything else.

    Of several files for one split, the first by name.
    """
    folder = user_path(path)
    if not folder.is_dir():
        return {}
    files = [file for file in sorted(folder.iterdir()) if _is_data(file)]
    found = {_split_of(file): str(file) for file in reversed(files) if _split_of(file)}
    return {name: found[name] for name in ("train", "calibration", "test") if name in found} if "train" in found else {}


def _split_of(file: Path) -> str:
    """Setting that takes a file by its name; empty if the name is no split's."""
    return SPLIT_NAMES.get(file.name.partition(".")[0].lower(), "")


def _is_data(file: Path) -> bool:
    hidden = file.name.startswith((".", "_", "LICENSE", "README"))
    return file.is_file() and not hidden and file.suffix.lower() not in SKIPPED and file.name != TASKS_FILE


def key_files(path: str) -> tuple[Path, ...]:
    """Return the file or folder to read, and the tasks.json beside a file if it is there."""
    file = user_path(split_part(path)[0])
    tasks = file.parent / TASKS_FILE
    return (file, tasks) if file.is_file() and file != tasks and _is_tasks_file(tasks) else (file,)


class Ids:
    """Digests of the ids so far, eight bytes each."""

    def __init__(self) -> None:
        self.seen = array("Q")

    def add(self, name: str) -> None:
        """Add an id."""
        self.seen.append(digest(name))

    def repeated(self) -> set[int]:
        """Return the digests that were added more than once."""
        import numpy as np

        values, counts = np.unique(np.array(self.seen, dtype=np.uint64), return_counts=True)
        return {int(value) for value in values[counts > 1]}


def digest(text: str) -> int:
    """Digest of a text as a number of 64 bits; the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass
class Account:
    """Number of records and rows of one input.

    files: format of each file by name.  read, kept: number of records and of rows.
    """

    files: dict[str, str] = field(default_factory=dict)
    read: int = 0
    kept: int = 0


def write_file_rows(
    where: str, path: str, target: Path, reader: RowReader, quarantine: Quarantine, ids: Ids
) -> Account:
    """Read the files that a setting names and write their rows to `target`, one at a time.

    where: the setting, also the prefix of new ids.
    Raises DataError if the files are no data or hold no rows, or too many records are bad.
    """
    account, before = Account(), quarantine.count
    prefix = "row" if where == "path" else where
    own = Quarantine(quarantine.stream)
    with target.open("wb") as stream:
        for place, (file, part) in enumerate(data_files(where, path)):
            numbered = f"{prefix}-{place + 1}" if place else prefix
            for row in _rows(file, part, numbered, reader, own, account):
                stream.write(row_line(row))
                ids.add(row.id)
                account.kept += 1
    merge(quarantine, own)
    own.check(path, account.read, reader.settings.max_quarantined)
    if account.read != account.kept + quarantine.count - before:
        raise AssertionError(
            f"{path}: {account.read} records, {account.kept} rows, {quarantine.count - before} quarantined"
        )
    reader.check(path)
    if not account.kept:
        raise DataError(path, "no rows", "at least one conversation", f"python -m flows.look {path}")
    return account


def merge(all_found: Quarantine, more: Quarantine) -> None:
    """Add the counts of `more`, whose records are written already."""
    all_found.count += more.count
    for reason, found in more.classes.items():
        if reason in all_found.classes:
            all_found.classes[reason].count += found.count
        else:
            all_found.classes[reason] = found


def _rows(
    file: Path, part: str, prefix: str, reader: RowReader, quarantine: Quarantine, account: Account
) -> Iterator[Row]:
    container = find_container(file, part, reader.settings.encoding)
    account.files[file.name] = container.words
    for record in read_records(container, reader.settings.max_bytes):
        account.read += 1
        try:
            row = reader.read(record, file.name, prefix)
        except BadRow as error:
            quarantine.add(file.name, record, error)
        else:
            yield row


def row_line(row: Row) -> bytes:
    """A row as a line of a rows file."""
    return (json.dumps(row.model_dump(mode="json"), ensure_ascii=False) + "\n").encode()


def make_unique(files: list[Path], ids: Ids) -> int:
    """Number rows whose id was used before (-2, -3 and so on); return how many."""
    repeated = ids.repeated()
    if not repeated:
        return 0
    taken = set(ids.seen)
    used: Counter[int] = Counter()
    changed = 0
    for file in files:
        new = file.with_suffix(".new")
        with file.open("rb") as stream, new.open("wb") as target:
            for line in stream:
                row: dict[str, Any] = json.loads(line)
                key = digest(row["id"])
                used[key] += key in repeated
                if used[key] > 1:
                    row["id"] = _free(row["id"], used[key], taken)
                    line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
                    changed += 1
                target.write(line)
        new.replace(file)
    return changed


def _free(name: str, number: int, taken: set[int]) -> str:
    while digest(f"{name}-{number}") in taken:
        number += 1
    taken.add(digest(f"{name}-{number}"))
    return f"{name}-{number}"


def reading_card(
    reader: RowReader, accounts: dict[str, Account], quarantine: Quarantine, renamed: int
) -> dict[str, Any]:
    """Entries of card.json on the reading: files, formats, remarks, quarantine."""
    return {
        "files": {name: account.files for name, account in accounts.items()},
        "formats": dict(reader.formats.most_common()),
        "taken": dict(sorted(reader.remarks.items())),
        "columns_left_out": dict(sorted(reader.left_out.items())),
        "ids_made_unique": renamed,
        "quarantined": quarantine.summary(),
        "records": {name: {"read": account.read, "rows": account.kept} for name, account in accounts.items()},
    }


def log_reading(reader: RowReader, accounts: dict[str, Account], quarantine: Quarantine, renamed: int) -> None:
    """Log the formats, tasks, remarks and quarantine of a reading."""
    for account in accounts.values():
        for name, words in account.files.items():
            log.info("%s: %s", name, words)
    log.info("conversations: %s", show_counts(dict(reader.formats.most_common())))
    for name, task in reader.tasks.items():
        log.info("task %s: type %s, layout %s", name, task.type, task.layout)
    for words, count in sorted(reader.remarks.items()):
        log.info("%d rows: %s", count, words)
    if reader.left_out:
        log.info(
            "columns left out of the tags, since they are too long or nested: %s", ", ".join(sorted(reader.left_out))
        )
    if renamed:
        log.warning("%d duplicate ids: a number was added to each", renamed)
    for reason, found in quarantine.classes.items():
        log.warning(
            "%d records in quarantine.jsonl: %s; first: %s line %d", found.count, reason, found.file, found.line
        )


def known_tasks(*paths: str) -> dict[str, Task]:
    """Tasks by name in the tasks.json beside the files, where a curation step wrote one."""
    found: dict[str, Task] = {}
    for path in paths:
        for file in key_files(path)[1:] if path else ():
            found |= read_tasks(file.parent)
    return found


def _is_tasks_file(file: Path) -> bool:
    """Return True for a tasks.json as a curation step writes it.

    Other people's files have that name as well.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    entries = content.values() if isinstance(content, dict) else [None]
    return all(isinstance(entry, dict) and {"type", "layout"} <= entry.keys() for entry in entries)
