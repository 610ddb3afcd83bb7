"""Events of a run as files, kept until the tracking server has them; independent of MLflow.

artifacts/.outbox/<run>/run.json           the run, its recipe and server
artifacts/.outbox/<run>/NNNN-<event>.json  one event, written whole or not at all; deleted once sent
artifacts/.outbox/<run>/.alive             locked as long as the process of the run lives
artifacts/.outbox/<run>/.lock              held by the sender of one of its events
artifacts/.outbox/damaged/                 files that could not be read, set aside
"""

import json
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tasks.shared.files import PART, write_text

VERSION = 1
"""Version of the event files; a file of another version is set aside."""
HEADER, DAMAGED = "run.json", "damaged"
CLOSED = (FileNotFoundError, FileExistsError)
"""Errors of acquiring a lock while another sender closes the outbox; the second if the folder was just removed."""


@dataclass(frozen=True)
class Header:
    """Run to which events belong.

    run: UUID.
    experiment: name of the recipe.
    address: tracking URI, credentials masked.
    started: ms since 1970.
    """

    run: str
    experiment: str
    address: str
    started: int


@dataclass(frozen=True)
class Event:
    """Start, step or end of a run.

    at: ms since 1970.
    number: index in the run.
    """

    header: Header
    kind: str
    number: int
    at: int
    content: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """Name of the event within its run, the same for every attempt to send it."""
        return f"{self.number:04}-{self.kind}"


class Outbox:
    """The waiting events of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._next = 0
        self._alive: FileLock | None = None

    @property
    def run(self) -> str:
        """The run's UUID."""
        return self.folder.name

    def event(self, header: Header, kind: str, content: Mapping[str, Any]) -> Event:
        """Create the run's next event."""
        self._next += 1
        return Event(header, kind, self._next - 1, now(), content)

    def put(self, event: Event) -> None:
        """Write an event atomically.  From then on, the run counts as alive."""
        if self._alive is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._alive = FileLock(self.folder / ".alive", thread_local=False)
            self._alive.acquire()
        if not (self.folder / HEADER).is_file():
            write_text(self.folder / HEADER, json.dumps(asdict(event.header)), sync=True)
        write_text(self._file(event), json.dumps({"version": VERSION, **asdict(event)}), sync=True)

    def _file(self, event: Event) -> Path:
        return self.folder / f"{event.identity}.json"

    def header(self) -> Header | None:
        """Read the run of the events; None if run.json cannot be read."""
        try:
            return Header(**json.loads((self.folder / HEADER).read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def files(self) -> list[Path]:
        """The waiting events, oldest first."""
        return sorted(self.folder.glob("[0-9]*-*.json"))

    def interrupted(self) -> list[Path]:
        """Partially written events of a process that died."""
        return sorted(self.folder.glob(f"[0-9]*.json*{PART}"))

    def read(self, file: Path) -> Event | None:
        """Read one waiting event; None if the file is not one."""
        try:
            found = json.loads(file.read_text("utf-8"))
            if found.pop("version") != VERSION or not isinstance(found["content"], dict):
                return None
            return Event(**found | {"header": Header(**found["header"])})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def sent(self, event: Event) -> None:
        """Delete an event that the server has."""
        self._file(event).unlink(missing_ok=True)

    def set_aside(self, file: Path) -> Path:
        """Move an unreadable file out of the way; return its new path."""
        aside = self.folder.parent / DAMAGED / f"{self.run}-{file.name}"
        aside.parent.mkdir(exist_ok=True)
        return file.rename(aside)

    @contextmanager
    def sending(self) -> Iterator[bool]:
        """Hold the lock for sending this run's events; yield False if the outbox was closed."""
        lock = FileLock(self.folder / ".lock", thread_local=False)
        try:
            lock.acquire()
        except CLOSED:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def alive(self) -> bool:
        """Return True if the process that writes these events is alive."""
        lock = FileLock(self.folder / ".alive", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except CLOSED:
            return False
        lock.release()
        return False

    def release(self) -> None:
        """Release the lock that marks the run as alive."""
        if self._alive is not None:
            self._alive.release()

    def close(self) -> None:
        """Remove the folder if it holds no event, not even a partial file."""
        if not self.files() and not self.interrupted():
            shutil.rmtree(self.folder, ignore_errors=True)


def base(root: Path) -> Path:
    """Folder of all outboxes below a root."""
    return root / "artifacts" / ".outbox"


def new_outbox(root: Path) -> Outbox:
    """Create an outbox for a new run, without writing to the disk yet."""
    return Outbox(base(root) / uuid.uuid4().hex)


def list_outboxes(root: Path) -> list[Outbox]:
    """Outboxes of all runs with unsent events or without an end, oldest first."""
    found = [Outbox(path) for path in base(root).glob("*") if path.is_dir() and path.name != DAMAGED]
    return sorted(found, key=lambda box: header.started if (header := box.header()) else 0)


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
