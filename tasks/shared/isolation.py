"""Run a function in a child process, so that its memory is freed and no crash ends the step.

The child is forked from a clean server that has imported the large libraries (`tasks/shared/fork_server.py`): it starts within
milliseconds and inherits no lock or thread pool of the step.
"""

import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from tasks.shared.errors import StillroomError
from tasks.shared.files import full_disk
from tasks.shared.fork_client import Forked, ForkServer, ServerDied
from tasks.shared.fork_server import INHERITED
from tasks.shared.processes import ProcessId, end_with

Result = TypeVar("Result")
PRELOADED = [
    "torch",
    "transformers.modeling_utils",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "pydantic.dataclasses",
    "pydantic.main",
    "pydantic.type_adapter",
]
"""Modules that the server imports once; in every child they would take seconds."""

LONGEST = 300
"""Longest message, in characters, kept of an error that is not a StillroomError."""
KILLED = "its process was killed: out of memory, most likely"


@dataclass(frozen=True)
class Failure:
    """Reason, in one line, why a function returned nothing."""

    reason: str


def preload(*modules: str) -> None:
    """Make the server import these modules too before it forks the next child."""
    PRELOADED.extend(name for name in modules if name not in PRELOADED)


def run_isolated(work: Callable[..., Result], *arguments: Any) -> Result | Failure:
    """Return `work(*arguments)`, run in a child process.

    work: a module-level function, since function, arguments and result are pickled.
    Returns a Failure for an exception, a lack of memory or a kill.  Unless the exception is a StillroomError, the reason starts with
    its type and the traceback goes to standard error, since broken models and our own bugs can raise anything.
    Re-raises an interrupt, and the OSError of a full disk, which is not the model's fault.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            child = _fork(theirs.fileno())
        try:
            answer = _exchange(ours, pickle.dumps((work, arguments)))
            code = _end_of(child)
        finally:
            child.close()
    if answer:
        result, error = pickle.loads(answer)
        if error is not None:
            raise error
        return result
    return Failure(KILLED if code < 0 else f"its process ended with code {code}; its traceback is above")


def _exchange(line: socket.socket, request: bytes) -> bytes:
    """Send the request and return the answer; empty if the child died."""
    try:
        line.sendall(request)
        line.shutdown(socket.SHUT_WR)
        with line.makefile("rb") as stream:
            return stream.read()
    except (BrokenPipeError, ConnectionResetError):
        return b""


def _fork(descriptor: int) -> Forked:
    """Fork a child; start a new server if the current one has died."""
    try:
        return _server(os.getpid()).fork(descriptor, _request())
    except ServerDied:
        os.environ.pop(INHERITED, None)
        _server.cache_clear()
        return _server(os.getpid()).fork(descriptor, _request())


def _end_of(child: Forked) -> int:
    """Exit code of the child, which dies with its server."""
    try:
        return child.wait()
    except ServerDied:
        return -signal.SIGKILL


@cache
def _server(pid: int) -> ForkServer:
    """Fork server of this process: inherited from the flow, or started now."""
    return ForkServer.inherited() or ForkServer.start(PRELOADED)


def _request() -> dict[str, Any]:
    return {
        "entry": f"{__name__}:serve_call",
        "arguments": [str(ProcessId.of())],
        "environment": dict(os.environ),
        "directory": str(Path.cwd()),
        "path": sys.path,
        "modules": PRELOADED,
    }


def serve_call(descriptor: int, starter: str) -> None:
    """Read a pickled function and its arguments from a socket, call it, send (result, error)."""
    end_with(ProcessId.parse(starter))
    with socket.socket(fileno=descriptor) as line, line.makefile("rb") as stream:
        answer = pickle.dumps(_call(stream.read()))
        line.sendall(answer)


def _call(request: bytes) -> tuple[Any, BaseException | None]:
    try:
        work, arguments = pickle.loads(request)
        return _guarded(work, arguments), None
    except (OSError, ImportError, AttributeError, KeyboardInterrupt) as error:
        return None, error


def _guarded(work: Callable[..., Result], arguments: tuple[Any, ...]) -> Result | Failure:
    try:
        return work(*arguments)
    except MemoryError:
        return Failure("out of memory")
    except Exception as error:
        if (full := full_disk(error)) is not None:
            raise OSError(full.errno, full.strerror, full.filename) from error
        if isinstance(error, StillroomError):
            return Failure(" ".join(str(error).split()))
        traceback.print_exc()
        return Failure(" ".join(f"{type(error).__name__}: {error}".split())[:LONGEST])
