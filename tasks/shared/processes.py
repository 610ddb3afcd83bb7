"""Which process is meant, although pids are used again; and processes of ours that end with the one that they work for."""

import ctypes
import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

POLL_S = 1.0
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class ProcessId:
    """A process for good: its pid, and its start, which no later process with that pid has in common with it.

    started: clock ticks after boot on Linux, which no change of the clock moves; elsewhere milliseconds since 1970.
    """

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int | None = None) -> "ProcessId":
        """The process that has this pid now; this process without one.  `started` is 0 if there is none."""
        found = os.getpid() if pid is None else pid
        return cls(found, _start(found) or 0)

    @classmethod
    def parse(cls, text: str) -> "ProcessId":
        """The process that `str` gave as text.  Raises ValueError for another text."""
        pid, _, started = text.partition("-")
        return cls(int(pid), int(started))

    def __str__(self) -> str:
        return f"{self.pid}-{self.started}"

    def is_alive(self) -> bool:
        """Return True if this very process has not ended."""
        return self.started != 0 and _start(self.pid) == self.started


def _start(pid: int) -> int | None:
    """When the process with this pid started; None if there is none, or only its exit code is left of it."""
    if sys.platform == "linux":
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
            return None if fields[0] in {"Z", "X"} else int(fields[19])
        return None
    import psutil

    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time() * 1000)
    return None


def end_with(other: ProcessId, *, whole_group: bool = False) -> None:
    """Kill this process as soon as the other one is gone, however that ended.

    whole_group: kill this process's group too: everything that it has started.  Without it the kernel is asked to kill this process with
    the thread that started it as well, so use `whole_group` where that thread may end before its process.
    """

    def watch() -> None:
        _wait_for(other)
        if whole_group:
            os.killpg(os.getpgid(0), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    if (
        not whole_group and sys.platform == "linux"
    ):  # a watching thread has to wait for Python's lock, the kernel has not
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=watch, daemon=True, name="end-with").start()


def _wait_for(other: ProcessId) -> None:
    """Return when the process has ended: at once where the kernel tells it, within a second elsewhere."""
    descriptor = -1
    with suppress(AttributeError, OSError):  # not Linux, an old kernel, or gone already
        descriptor = os.pidfd_open(other.pid)
    if descriptor >= 0 and other.is_alive():
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll()
    while other.is_alive():
        time.sleep(POLL_S)
