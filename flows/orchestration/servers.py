"""Which Prefect server a run talks to: the user's, or one that lasts as long as the command.

Prefect's own temporary server outlives a process that is killed; ours watches its parent and ends with it, whatever happens
to that.

python -m flows.orchestration.servers PORT         the server with its pages, on loopback (make ui)
"""

import argparse
import logging
import os
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from flows.console import exit_codes
from flows.tracking.address import mask
from tasks.shared.errors import ConfigError, MachineError, StillroomError
from tasks.shared.processes import ProcessId
from tasks.shared.store.keys import PROJECT

log = logging.getLogger("stillroom")
URL = "PREFECT_API_URL"
TEMPORARY = "STILLROOM_TEMPORARY_SERVER"
"""Environment variable that is set while PREFECT_API_URL is our temporary server's."""
servers = ExitStack()
"""What lasts until the command ends: a temporary server, shared by its runs, and their presence.  Closed by the command."""
dead: set[str] = set()
"""The user's servers that did not answer: each is told once."""
START_LIMIT_S = 180.0
"""The first start creates the database: half a minute on a busy laptop."""
QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
BRIEF = {"PREFECT_CLIENT_MAX_RETRIES": "2"}
"""A run asks a server that has gone for six seconds, not for a minute each time: its steps can do without."""
BARE = {
    "PREFECT_UI_ENABLED": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}
"""What a server does without that only keeps states for the length of a command."""


def has_server() -> bool:
    """Whether the user runs a Prefect server, so that somebody may be looking at it."""
    return bool(os.environ.get(URL)) and TEMPORARY not in os.environ


def server_name() -> str:
    """The server's URL, or "temporary": temporary servers share a database under changing URLs."""
    return mask(os.environ[URL]) if has_server() else "temporary"


def find_server() -> bool:
    """`has_server`, after looking into Prefect's active profile and asking the server whether it is there.

    One that does not answer is told once and then left alone.
    """
    if TEMPORARY in os.environ:
        return False
    url = os.environ.get(URL) or profile_url()
    if not url or url in dead:
        return False
    if not server_answers(url):
        log.warning(
            "Prefect's server %s does not answer; this run uses a temporary one and will not be in that UI", url
        )
        dead.add(url)
        os.environ.pop(URL, None)
        return False
    os.environ[URL] = url
    return True


def profile_url() -> str:
    """PREFECT_API_URL of Prefect's active profile; empty where there is none."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    try:
        profiles = tomllib.loads((home / "profiles.toml").read_text("utf-8"))
        active = os.environ.get("PREFECT_PROFILE") or profiles["active"]
        return str(profiles["profiles"][active][URL])
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError):
        return ""


def choose_server(root: Path) -> None:
    """Import Prefect with the settings that it reads then: offline, quiet; and a server.

    A temporary server has its database beside our artifacts.  Raises MachineError if it does not start.
    """
    for name, value in (QUIET | BRIEF).items():
        os.environ.setdefault(name, value)
    if find_server() or TEMPORARY in os.environ:
        load_prefect()
        return
    home = Path(os.environ.setdefault("PREFECT_HOME", str(root / ".prefect")))

    def meanwhile(url: str) -> None:
        servers.callback(os.environ.pop, TEMPORARY, None)
        servers.callback(os.environ.pop, URL, None)
        os.environ[URL], os.environ[TEMPORARY] = url, "1"
        load_prefect()

    servers.enter_context(temporary_server(home, meanwhile))


def load_prefect() -> None:
    """Import Prefect, and leave its log to its pages: on the console our own lines say what happens."""
    from prefect import flow, task  # noqa: F401  the first use of a lazy name sets up Prefect's logging
    from prefect.client.orchestration import get_client  # noqa: F401

    for name in ("prefect", "prefect._internal"):
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.handlers = [logging.NullHandler()]
    logging.raiseExceptions = False  # a server that has gone is said once, by us


@contextmanager
def temporary_server(home: Path, meanwhile: Callable[[str], None] = lambda url: None) -> Iterator[str]:
    """Run a server on a free loopback port, its database in `home`; yields the API's URL once it answers.

    meanwhile: what to do while it starts.  Raises MachineError if it does not start.
    """
    home.mkdir(parents=True, exist_ok=True)
    said = home / "server.log"
    with ExitStack() as stack:
        with hold_start(home):  # two at once break the migration of a new database
            with socket.create_server(("127.0.0.1", 0)) as listener:  # handed down: nobody else can get the port
                url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
                child = start_child(home, said, listener)
            stack.callback(stop_child, child)
            reach_loopback()
            meanwhile(url)
            wait_for(url, child, said)
        yield url


@contextmanager
def hold_start(home: Path) -> Iterator[None]:
    """One start at a time.  Raises MachineError."""
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


def start_child(home: Path, said: Path, listener: socket.socket) -> "subprocess.Popen[bytes]":
    """The server as a child that serves the given socket."""
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: value for name, value in os.environ.items() if name not in {URL, TEMPORARY}}
    with said.open("ab") as stream:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "flows.orchestration.servers",
                "--socket",
                str(listener.fileno()),
                "--parent",
                str(ProcessId.of()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # Ctrl-C is ours: the server has to hear of the last states
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
    """Keep a proxy, where one is set, out of the way to our own machine."""
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))


def wait_for(url: str, child: "subprocess.Popen[bytes]", said: Path) -> None:
    """Until the API answers."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and child.poll() is None:
        if server_answers(url):
            return
        time.sleep(0.1)
    last = said.read_text("utf-8", "replace").strip().splitlines()[-1:]
    raise MachineError(
        "Prefect's temporary server",
        f"it did not start: {' '.join(last) or 'no answer'}",
        "an API that answers",
        f"see {said}, or go on without Prefect: runtime.orchestrator=none",
    )


def server_answers(url: str) -> bool:
    """Whether a Prefect API answers at this URL; one that asks for a key or a password does."""
    import httpx

    try:
        code = httpx.get(f"{url.rstrip('/')}/health", timeout=5).status_code
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return code < 400 or code in {401, 403}


def serve_temporary(descriptor: int, parent: ProcessId) -> None:
    """Serve Prefect's API on an open socket until the parent is gone."""
    from tasks.shared.processes import end_with

    end_with(parent, whole_group=True)
    import uvicorn
    from prefect.server.api.server import create_app

    listener = socket.socket(fileno=descriptor)
    config = uvicorn.Config(create_app(ephemeral=True, final=True), log_level="error", timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listener])


def serve_pages(port: int) -> int:
    """Prefect's own server with its pages; they ask the API at the address that they were configured for, so it is told.

    Raises ConfigError if the port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError("port", f"{port}: {error.strerror}", "a free one", f"make ui PORT={port + 1}") from None
    url = f"http://127.0.0.1:{port}/api"
    log.info("Prefect's pages: %s   runs come here with:  export %s=%s", url.removesuffix("/api"), URL, url)
    environment = os.environ | QUIET | {URL: url, "PREFECT_UI_API_URL": url}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    os.execve(sys.executable, command, environment)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line.  Exit code 2: a message for the user."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.orchestration.servers", description="Prefect's server with its pages."
    )
    parser.add_argument("port", nargs="?", type=int, default=4200)
    parser.add_argument("--socket", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=ProcessId.parse, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    try:
        if options.socket is None:
            return serve_pages(options.port)
        serve_temporary(options.socket, options.parent)
    except StillroomError as error:
        log.error("%s", error)
        return exit_codes.USER
    return 0


if __name__ == "__main__":
    sys.exit(main())
