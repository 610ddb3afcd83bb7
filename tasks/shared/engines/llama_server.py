"""llama.cpp's OpenAI-compatible server for one GGUF file, on loopback, as a context manager."""

import contextlib
import json
import logging
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tasks.shared.errors import MachineError, ModelError
from tasks.shared.model.template_edits import CLOCKS, pinned
from tasks.shared.model.weights import read_gguf

CHILD = Path(__file__).with_name("llama_child.py")
START_LIMIT_S = 180.0
STOP_LIMIT_S = 5.0
MAGIC = b"GGUF"
HEADER_BYTES = 64 * 2**20
"""Bytes at the start of a file that hold its metadata, vocabulary included."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LlamaServer:
    """A running server.  url: base URL, ends in /v1.  pid: of its process, for measuring memory."""

    url: str
    pid: int


@contextmanager
def serve(model: Path, *, threads: int, parallel: int, context: int = 2048, port: int = 0) -> Iterator[str]:
    """Run llama.cpp's server on `model` and yield its base URL; see `start`."""
    with start(model, threads=threads, parallel=parallel, context=context, port=port) as server:
        yield server.url


@contextmanager
def start(
    model: Path, *, threads: int, parallel: int, context: int = 2048, port: int = 0, limit: float = START_LIMIT_S
) -> Iterator[LlamaServer]:
    """Run llama.cpp's server (xllamacpp) on `model` in a child process.

    parallel: requests decoded together.
    context: tokens (prompt and answer) of each request; the KV cache has room for parallel x context.
    port: 0 takes a free one.
    limit: seconds until the model must be loaded.

    The server needs a child process because xllamacpp's stop waits for requests in flight while it holds the GIL, which
    would deadlock in one process.  The child also ends when this process is killed.
    Raises ModelError for a file that is missing or that llama.cpp cannot load, MachineError for a port in use or a
    server that is not ready in time.
    """
    _check_file(model)
    _check_port(port)
    settings = {"model": str(model), "port": port, "parallel": parallel, "context": context, "threads": threads}
    settings["template"] = held_template(model)
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", str(CHILD), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        try:
            url = _await_url(process, model, port, limit, errors)
            yield LlamaServer(url=f"{url}/v1", pid=process.pid)
        finally:
            _stop(process)
            for line in _lines(errors):
                log.debug("llama.cpp: %s", line)


def held_template(model: Path) -> str:
    """Return the file's chat template with its clock held still; empty if it has none.

    llama.cpp would write today's date, and the same model would answer otherwise tomorrow.
    """
    with model.open("rb") as stream:
        header = stream.read(HEADER_BYTES)
    if not any(clock.encode() in header for clock in CLOCKS):
        return ""
    field = read_gguf(model).get_field("tokenizer.chat_template")
    return pinned(str(field.contents())) if field is not None else ""


def _check_file(model: Path) -> None:
    fix = "give the path of a GGUF file, or export the model with export/gguf first"
    if not model.is_file():
        raise ModelError(str(model), "no such file", "a .gguf file", fix)
    with model.open("rb") as stream:
        found = stream.read(len(MAGIC))
    if found != MAGIC:
        raise ModelError(str(model), f"starts with {found!r}", "a .gguf file, which starts with b'GGUF'", fix)


def _check_port(port: int) -> None:
    if not port:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise _port_error(port, str(error)) from error


def _port_error(port: int, reason: str) -> MachineError:
    return MachineError(
        f"127.0.0.1:{port}",
        f"port {port} cannot be used ({reason})",
        "a free port",
        "use `port: 0` (takes a free one) or stop the process that uses it",
    )


def _await_url(process: subprocess.Popen[bytes], model: Path, port: int, limit: float, errors: IO[bytes]) -> str:
    assert process.stdout is not None
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(limit, expire)
    timer.start()
    try:
        answer = found_answer(process.stdout)
    finally:
        timer.cancel()
    if expired.is_set():
        raise MachineError(
            str(model),
            f"llama.cpp's server was not ready after {limit:.0f} s",
            "",
            "free memory or processor time, or use a smaller model",
        )
    answer = answer or {"error": f"exit code {process.wait(STOP_LIMIT_S)}"}
    if "url" in answer:
        return str(answer["url"])
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_LIMIT_S)  # llama.cpp's log is written by a thread of its own, whole only at its end
    reasons = _lines(errors)
    if any("couldn't bind" in reason for reason in reasons):
        raise _port_error(port, "taken meanwhile")
    raise ModelError(
        str(model),
        f"llama.cpp cannot load it: {_reason(reasons) or answer['error']}",
        "a complete GGUF file",
        "fetch or export it again",
    )


def found_answer(lines: IO[bytes]) -> dict[str, Any]:
    """Return the child's answer, `url` or `error`; empty if it ended without one.

    Other lines are passed over: where llama.cpp aborts, a debugger prints its stack.
    """
    for line in lines:
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and found.keys() & {"url", "error"}:
                return found
        log.debug("llama.cpp: %s", line.decode("utf-8", "replace").rstrip())
    return {}


def _lines(errors: IO[bytes]) -> list[str]:
    errors.seek(0)
    return errors.read().decode("utf-8", "replace").splitlines()


def _reason(lines: list[str]) -> str:
    """Most informative line of llama.cpp's log, without its time stamp."""
    errors = [line for line in lines if "error loading model:" in line or "Error" in line] or lines
    return errors[0].split("error loading model:")[-1].strip() if errors else ""


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the child: close its input, then kill."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
