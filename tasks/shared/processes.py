"""Process identity that survives pid reuse, and child processes that end with their parent."""

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
    """Identity of a process: its pid and start time, since the system reuses pids.

    started: clock ticks since boot on Linux, unaffected by clock changes; milliseconds since 1970 elsewhere.
    """

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int | None = None) -> "ProcessId":
        """Return the process with this pid, or the current one; `started` is 0 if there is none."""
        number = os.getpid() if pid is None else pid
        return cls(number, _start(number) or 0)

    @classmethod
    def parse(cls, text: str) -> "ProcessId":
        """Parse the output of `str(process_id)`.  Raises ValueError for any other text."""
        pid, _, started = text.partition("-")
        return cls(int(pid), int(started))

    def __str__(self) -> str:
        return f"{self.pid}-{self.started}"

    def is_alive(self) -> bool:
        """Return True if this process, and not a later one with its pid, is still running."""
        return self.started != 0 and _start(self.pid) == self.started


def _start(pid: int) -> int | None:
    """Start time of the process with this pid; None if there is none or it is a zombie."""
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
    """Kill this process as soon as the other one has ended, for whatever reason.

    whole_group: kill this process's group too, that is all that it has started.  Otherwise, on Linux, the kernel also kills this
    process when the thread that started it ends; use `whole_group` if that thread may end before its process.
    """

    def watch() -> None:
        _wait_for(other)
        if whole_group:
            os.killpg(os.getpgid(0), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    if not whole_group and sys.platform == "linux":  # unlike the watching thread, the kernel needs no GIL
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=watch, daemon=True, name="end-with").start()


def _wait_for(other: ProcessId) -> None:
    """Wait for the end of a process: noticed at once with a pidfd, else within a second."""
    descriptor = -1
    with suppress(AttributeError, OSError):  # not Linux, an old kernel, or gone already
        descriptor = os.pidfd_open(other.pid)
    if descriptor >= 0 and other.is_alive():
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll()
    while other.is_alive():
        time.sleep(POLL_S)
