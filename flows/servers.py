"""Which Prefect server a run talks to: the user's, or one that lasts as long as the command.

Prefect's own temporary server outlives a process that is killed; ours watches its parent and ends with it, whatever happens
to that.

python -m flows.servers PORT         what a run starts as its child
"""

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from tasks.shared.errors import MachineError
from tasks.shared.keys import PROJECT

log = logging.getLogger("stillroom")
TEMPORARY = "STILLROOM_TEMPORARY_SERVER"
"""Environment variable that is set while PREFECT_API_URL is our temporary server's."""
servers = ExitStack()
"""Temporary servers of this process; several runs of one command share one.  Closed by the command."""
START_LIMIT_S = 180.0
"""The first start creates the database: half a minute on a busy laptop."""


def has_server() -> bool:
    """Whether the user runs a Prefect server, so that somebody may be looking at it."""
    return bool(os.environ.get("PREFECT_API_URL")) and TEMPORARY not in os.environ


def server_name() -> str:
    """The server's URL, or "temporary": temporary servers share a database under changing URLs."""
    return os.environ["PREFECT_API_URL"] if has_server() else "temporary"


def choose_server(root: Path) -> None:
    """Settings that Prefect reads when it is imported: offline, quiet, its database beside our artifacts; and a server."""
    url = os.environ.get("PREFECT_API_URL", "")
    if has_server() and not server_answers(url):
        log.warning(
            "PREFECT_API_URL=%s does not answer; this run uses a temporary server and will not be in that UI", url
        )
        del os.environ["PREFECT_API_URL"]
    for name, value in {
        "PREFECT_HOME": str(root / ".prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("PREFECT_API_URL"):
        os.environ["PREFECT_API_URL"] = servers.enter_context(temporary_server(Path(os.environ["PREFECT_HOME"])))
        os.environ[TEMPORARY] = "1"
        servers.callback(os.environ.pop, TEMPORARY, None)
        servers.callback(os.environ.pop, "PREFECT_API_URL", None)
    quiet_console()


def quiet_console() -> None:
    """Leave Prefect's log to its pages: on the console our own lines say what happens, and errors come without tracebacks."""
    import prefect

    prefect.get_client  # noqa: B018  the first use of a lazy name sets up Prefect's logging
    for handler in logging.getLogger("prefect").handlers:
        handler.setLevel(logging.CRITICAL)


@contextmanager
def temporary_server(home: Path) -> Iterator[str]:
    """Run a server on a free loopback port, its database in `home`; yields the API's URL once it answers.

    Raises MachineError if it does not start.
    """
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    log = home / "server.log"
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PREFECT_UI_ENABLED": "0"}
    with FileLock(home / "server.lock", timeout=START_LIMIT_S), log.open("ab") as stream:  # two at once break the migration
        child = subprocess.Popen(
            [sys.executable, "-m", "flows.servers", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # Ctrl-C is ours: the server has to hear of the last states
            env=environment,
        )
        url = f"http://127.0.0.1:{port}/api"
        try:
            wait_for(url, child, log)
        except BaseException:
            child.kill()
            child.wait()
            raise
    try:
        yield url
    finally:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(5)
        child.kill()
        child.wait()


def wait_for(url: str, child: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until the API answers."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and child.poll() is None:
        if server_answers(url):
            return
        time.sleep(0.1)
    last = log.read_text("utf-8", "replace").strip().splitlines()[-1:]
    raise MachineError(
        "Prefect's temporary server",
        f"it did not start: {' '.join(last) or 'no answer'}",
        "an API that answers",
        f"see {log}, or go on without Prefect: runtime.orchestrator=none",
    )


def server_answers(url: str) -> bool:
    """Whether a Prefect API answers at this URL."""
    import httpx

    try:
        return httpx.get(f"{url.rstrip('/')}/health", timeout=5).is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def free_port() -> int:
    """A loopback port that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> None:
    """Serve Prefect's API until the parent is gone."""
    from flows.stage import follow_parent

    follow_parent(os.getppid())
    import uvicorn

    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="error",
    )


if __name__ == "__main__":
    main()
