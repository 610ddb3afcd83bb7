"""Client of the fork server, which provides fresh processes with large libraries imported."""

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from tasks.shared.fork_server import FORK, INHERITED

PROGRAM = Path(__file__).with_name("fork_server.py")
TITLE_ROOM = " " * 600
"""Placeholder argument; a forked process overwrites it with its own command line."""
CLOSE_S = 5.0
WITHOUT_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Settings that stop OpenBLAS and Arrow's allocator from starting threads at import.  Forked processes restore their BLAS threads."""
WITHOUT_CUDA = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""Setting that lets torch count GPUs without initializing CUDA."""


class ServerDied(RuntimeError):
    """The server ended before the requested process did, or it cannot fork."""


class Forked:
    """A process requested from the server.

    pid: None until it is forked, which can take as long as the imports do.
    """

    def __init__(self, line: socket.socket) -> None:
        self.line = line
        self.pid: int | None = None
        self.code: int | None = None
        self._received = b""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code and return it; negative for a signal.

        Raises subprocess.TimeoutExpired, or ServerDied.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.code is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not _readable(self.line, left):
                raise subprocess.TimeoutExpired("forked process", timeout or 0.0)
            self._receive()
        return self.code

    def signal(self, number: int, *, whole_group: bool = False) -> None:
        """Send a signal to the process or its group; no effect before the fork or after the end."""
        with suppress(subprocess.TimeoutExpired, ServerDied):
            self.wait(0)
        if self.pid is not None and self.code is None:
            with suppress(ProcessLookupError):
                (os.killpg if whole_group else os.kill)(self.pid, number)

    def close(self) -> None:
        """Withdraw the request; the server kills a process that is still running."""
        self.line.close()

    def _receive(self) -> None:
        received = b""
        with suppress(ConnectionError):
            received = self.line.recv(4096)
        if not received:
            raise ServerDied("it ended")
        *lines, self._received = (self._received + received).split(b"\n")
        for line in lines:
            word, _, value = line.partition(b" ")
            if word == b"unfit":
                raise ServerDied(value.decode())
            if word == b"pid":
                self.pid = int(value)
            else:
                self.code = int(value)


class ForkServer:
    """Client of a server; thread-safe.

    control: socket to the server.  Closing it ends the server, which kills the processes that it forked.
    """

    def __init__(self, control: socket.socket, process: "subprocess.Popen[bytes] | None" = None) -> None:
        self.control = control
        self.process = process
        self.lock = threading.Lock()

    @classmethod
    def start(
        cls, modules: Sequence[str], environment: Mapping[str, str] | None = None, *, quiet: bool = False
    ) -> "ForkServer":
        """Start a server that imports `modules`, in this order, while it is idle.

        environment: variables that the libraries read at import.
        quiet: run in a session of its own and discard output.
        """
        ours, theirs = socket.socketpair()
        output = subprocess.DEVNULL if quiet else None
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), str(theirs.fileno()), ",".join(modules), TITLE_ROOM],
                env={**(os.environ if environment is None else environment), **WITHOUT_THREADS, **WITHOUT_CUDA},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                start_new_session=quiet,
            )
        return cls(ours, process)

    @classmethod
    def inherited(cls) -> "ForkServer | None":
        """Return the spare server that this process received when it was forked, if any.

        Always the same object.
        """
        descriptor, _, pid = os.environ.get(INHERITED, "").partition(":")
        return _spare(int(descriptor), int(pid)) if pid == str(os.getpid()) else None

    def fork(self, descriptor: int, request: Mapping[str, Any]) -> Forked:
        """Request a process.  Raises ServerDied.

        descriptor: standard output and standard error of a process with `own_group`; otherwise its number is the first argument.
        request: entry ("module:function"), arguments, environment, directory, path (sys.path), modules (imported before the fork),
        own_group (a session and process group of its own, killed with it), spare (a fork server of its own), title (shown by ps).
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs, self.lock:
                socket.send_fds(self.control, [FORK], [theirs.fileno(), descriptor])
            ours.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            ours.close()
            raise ServerDied("it ended") from error
        return Forked(ours)

    def close(self) -> None:
        """End the server and the processes that it forked."""
        self.control.close()
        if self.process is not None:
            try:
                self.process.wait(CLOSE_S)
            except subprocess.TimeoutExpired:  # it is in the middle of an import
                self.process.kill()
                self.process.wait()


@cache
def _spare(descriptor: int, pid: int) -> ForkServer:
    return ForkServer(socket.socket(fileno=descriptor))


def _readable(line: socket.socket, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(line, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))
