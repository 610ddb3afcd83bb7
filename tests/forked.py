"""Python code in a process of its own, forked from a server that has loaded the large libraries: seconds less than a new interpreter.

The process has none of the project's modules loaded.  `ForkedCode` gives it a spare server for what it isolates, as a step's process in
a flow has one; `run_module` is `python -m` without the imports.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
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

COMMANDS = (
    "hydra", "hydra.core.hydra_config", "hydra.core.global_hydra", "hydra._internal.instantiate._instantiate2", "hydra.utils",
    "omegaconf", "pydantic.dataclasses", "pydantic:BaseModel", "pydantic:TypeAdapter", "pydantic.json_schema", "numpy", "threadpoolctl",
    "yaml", "filelock", "psutil", "httpx", "tenacity", "rich.console", "rich.table", "rich.progress", "rich.logging", "asyncio",
    "dvc.cli", "dvc.cli.parser", "dvc.repo", "dvc.fs", "dvc.commands.repro", "dvc.commands.status", "dvc.repo.reproduce", "dvc.repo.status",
    "dvc.repo.plots", "dvc.scm", "ruamel.yaml", "dvc_data.index", "dvc_data.hashfile.build", "scipy.stats", "scipy.optimize", "gguf.constants",
)  # fmt: skip
"""What the commands of flows/ and DVC import, apart from Prefect and MLflow, whose settings are read as they are imported."""


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


@cache
def command_server(pid: int) -> ForkServer:
    """The server of this process for commands."""
    return ForkServer.start(COMMANDS)


def bare_path() -> list[str]:
    """sys.path without the project and what PYTHONPATH adds: what a new interpreter has."""
    ours = {"", str(PROJECT), str(PROJECT / "tests"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    return [entry for entry in sys.path if entry not in ours]


AS_MODULE = """
import os, runpy, sys
for number, file in enumerate([os.devnull, *files]):
    os.dup2(os.open(file, os.O_RDWR), number)
sys.path[:0] = paths
sys.argv = [module, *words]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def run_module(
    module: str, words: Sequence[str], directory: Path, environment: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    """`python -m module words`, with what it prints; nothing may signal it or look for it by its command line."""
    with tempfile.TemporaryDirectory(prefix="command-") as folder, Path(os.devnull).open("wb") as nothing:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        for file in files:
            file.touch()
        paths = [str(directory), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
        request = {
            "entry": "builtins:exec",
            "arguments": [
                AS_MODULE,
                {"module": module, "words": words, "files": list(map(str, files)), "paths": paths},
            ],
            "environment": dict(environment),
            "directory": str(directory),
            "path": bare_path(),
            "modules": COMMANDS,
            "own_group": True,
            "spare": True,
        }
        child = command_server(os.getpid()).fork(nothing.fileno(), request)
        try:
            code = child.wait(timeout=240)
        finally:
            child.close()
        said = [file.read_text("utf-8", "replace") for file in files]
    return subprocess.CompletedProcess([sys.executable, "-m", module, *words], code, *said)


def execute(code: str, stderr: str, arguments: list[str]) -> None:
    """The forked process's work."""
    with Path(stderr).open("wb") as stream:
        os.dup2(stream.fileno(), 2)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<forked>", "exec"), {"__name__": "__main__"})
