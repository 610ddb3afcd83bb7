"""A Prefect server that lasts as long as the command that started it.

Prefect's own temporary server outlives a process that is killed; ours watches its parent and ends with it.
The module is also the program of that child process.
"""

import argparse
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from flows.orchestration.servers import TEMPORARY, URL, server_answers
from tasks.shared.errors import MachineError
from tasks.shared.processes import ProcessId, end_with
from tasks.shared.store.keys import PROJECT

START_LIMIT_S = 180.0
"""Seconds for a start.  The first one creates the database, which takes half a minute on a busy laptop."""
BARE = {
    "PREFECT_UI_ENABLED": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}
"""Parts that a server does not need if it only keeps states for the duration of a command."""


@contextmanager
def temporary_server(home: Path, while_starting: Callable[[str], None] = lambda url: None) -> Iterator[str]:
    """Run a server on a free loopback port, its database in `home`; yield its URL.

    while_starting: called with the URL while the server starts.
    Raises MachineError if it does not start.
    """
    home.mkdir(parents=True, exist_ok=True)
    log_file = home / "server.log"
    with ExitStack() as stack:
        with hold_start(home):  # two at once break the migration of a new database
            # Handed down, so that no other process gets the port.
            with socket.create_server(("127.0.0.1", 0)) as listener:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
                child = start_child(home, log_file, listener)
            stack.callback(stop_child, child)
            reach_loopback()
            while_starting(url)
            wait_for(url, child, log_file)
        yield url


@contextmanager
def hold_start(home: Path) -> Iterator[None]:
    """Hold the right to start a server.  Raises MachineError after three minutes."""
    lock = FileLock(home / "server.lock", timeout=START_LIMIT_S)
    try:
        lock.acquire()
    except Timeout:
        raise MachineError(
            "Prefect's temporary server",
            f"another one has been starting for {START_LIMIT_S:.0f} s",
            "one that starts",
            "end that command, or go on without Prefect: runtime.orchestrator=none",
        ) from None
    try:
        yield
    finally:
        lock.release()


def start_child(home: Path, log_file: Path, listener: socket.socket) -> "subprocess.Popen[bytes]":
    """Start the server as a child that serves the given socket."""
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: value for name, value in os.environ.items() if name not in {URL, TEMPORARY}}
    with log_file.open("ab") as stream:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "flows.orchestration.temporary_server",
                "--socket",
                str(listener.fileno()),
                "--parent",
                str(ProcessId.of()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # Ctrl-C must not reach the server, which still has to receive the last states
            pass_fds=[listener.fileno()],
            env=kept | BARE | {"PYTHONPATH": os.pathsep.join(paths), "PREFECT_HOME": str(home)},
        )


def stop_child(child: "subprocess.Popen[bytes]") -> None:
    """End a server, gently first."""
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(5)
    child.kill()
    child.wait()


def reach_loopback() -> None:
    """Exempt the loopback address from a proxy."""
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))


def wait_for(url: str, child: "subprocess.Popen[bytes]", log_file: Path) -> None:
    """Wait until the API answers.  Raises MachineError."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and child.poll() is None:
        if server_answers(url):
            return
        time.sleep(0.1)
    last = log_file.read_text("utf-8", "replace").strip().splitlines()[-1:]
    raise MachineError(
        "Prefect's temporary server",
        f"it did not start: {' '.join(last) or 'no answer'}",
        "an API that answers",
        f"see {log_file}, or go on without Prefect: runtime.orchestrator=none",
    )


def serve_temporary(descriptor: int, parent: ProcessId) -> None:
    """Serve Prefect's API on an open socket until the parent has ended."""
    end_with(parent, whole_group=True)
    import uvicorn
    from prefect.server.api.server import create_app

    listener = socket.socket(fileno=descriptor)
    config = uvicorn.Config(create_app(ephemeral=True, final=True), log_level="error", timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listener])


def main() -> None:
    """Run the program of the child process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--parent", type=ProcessId.parse, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    serve_temporary(options.socket, options.parent)


if __name__ == "__main__":
    main()
