"""Python code in a process of its own, forked from a server that has loaded the large libraries: seconds less than a new interpreter.

The process has none of the project's modules loaded, and a spare server for what it isolates: as a step's process in a flow.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tasks.shared import isolation
from tasks.shared.fork_client import ForkServer
from tasks.shared.isolation import PRELOADED
from tasks.shared.store.keys import PROJECT

TRAINING = (*PRELOADED, "datasets", "trl.trainer.sft_trainer")
TRACKING = ("mlflow", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store")
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
"""What flows/tracking sets before it imports MLflow: it would start threads, with which nothing can be forked."""


class ForkedCode:
    """A running process with the parts of subprocess.Popen that tests use.

    code: the program.  arguments: its sys.argv[1:].  libraries: loaded before the fork.
    """

    def __init__(self, code: str, *arguments: str, libraries: Sequence[str] = PRELOADED) -> None:
        self.returncode: int | None = None
        handle, name = tempfile.mkstemp(prefix="stderr-")
        os.close(handle)
        self.stderr = Path(name)
        read, write = os.pipe()
        self.stdout = os.fdopen(read, encoding="utf-8")
        request = {
            "entry": f"{__name__}:execute",
            "arguments": [code, name, list(arguments)],
            "environment": dict(os.environ),
            "directory": str(PROJECT),
            "path": [str(PROJECT), str(PROJECT / "tests"), *sys.path],
            "modules": list(libraries),
            "own_group": True,
            "spare": True,
        }
        try:
            self.child = server_with(libraries).fork(write, request)
        finally:
            os.close(write)

    def kill(self) -> None:
        self.child.signal(signal.SIGKILL)

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """Wait for the end; return standard output and standard error."""
        self.returncode = self.child.wait(timeout)
        told = self.stdout.read(), self.stderr.read_text("utf-8", "replace")
        self.stdout.close()
        self.child.close()
        self.stderr.unlink()
        return told


def server_with(libraries: Sequence[str]) -> ForkServer:
    """For models, the server that isolation uses anyway; MLflow has one of its own, since it is imported with `QUIET`."""
    return tracking_server(os.getpid()) if libraries == TRACKING else isolation._server(os.getpid())


@cache
def tracking_server(pid: int) -> ForkServer:
    """The server of this process, with which it ends."""
    return ForkServer.start(TRACKING, os.environ | QUIET)


def execute(code: str, stderr: str, arguments: list[str]) -> None:
    """The forked process's work."""
    with Path(stderr).open("wb") as stream:
        os.dup2(stream.fileno(), 2)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<forked>", "exec"), {"__name__": "__main__"})
