"""Python code in a process of its own, forked from a server that has loaded the large libraries: seconds less than a new interpreter.

The process has none of the project's modules loaded.  `ForkedCode` gives it a spare server for what it isolates, as a step's process in
a flow has one; `run_module` is `python -m` without the imports.
"""

import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

import psutil

from tasks.shared import isolation
from tasks.shared.fork_client import ForkServer
from tasks.shared.fork_server import reopen_streams
from tasks.shared.isolation import PRELOADED
from tasks.shared.store.keys import PROJECT

TRAINING = (*PRELOADED, "datasets", "trl.trainer.sft_trainer")
TRACKING = ("mlflow", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store")
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
"""What flows/tracking sets before it imports MLflow: it would start threads, with which nothing can be forked."""

HYDRA = (
    "hydra", "hydra.core.hydra_config", "hydra.core.global_hydra", "hydra._internal.instantiate._instantiate2", "hydra.utils",
    "omegaconf", "pydantic.dataclasses", "pydantic:BaseModel", "pydantic:TypeAdapter", "pydantic.json_schema", "numpy", "threadpoolctl",
    "yaml", "filelock", "psutil", "httpx", "tenacity", "rich.console", "rich.table", "rich.progress", "rich.logging", "asyncio",
)  # fmt: skip
COMMANDS = (
    *HYDRA, "dvc.cli", "dvc.cli.parser", "dvc.repo", "dvc.fs", "dvc.commands.repro", "dvc.commands.status", "dvc.repo.reproduce", "dvc.repo.status",
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


RUN_SERVERS: list[ForkServer] = []


@cache
def run_server(pid: int) -> ForkServer:
    """The server of this process for whole runs."""
    from flows.running.environment import step_variables

    RUN_SERVERS.append(ForkServer.start([], os.environ | step_variables(os.cpu_count() or 1, os.environ)))
    return RUN_SERVERS[-1]


@cache
def modules_of_run(recipe: str) -> list[str]:
    """Third-party modules that a run of a recipe and its steps import."""
    from flows.planning.config import compose_recipe
    from flows.running.fork_template import EVERY_STEP, third_party

    techniques = [node["_target_"].rpartition(".")[0] for node in compose_recipe(recipe).recipe["steps"].values()]
    modules = [*EVERY_STEP, *HYDRA, *(name for module in techniques for name in third_party(module))]
    return list(dict.fromkeys(modules))


class ForkedRun:
    """`python -m flows.compress words` with the parts of subprocess.Popen that a test needs that kills it.

    recipe: the shipped one whose steps it has.  output: file for what it prints.
    Its steps are forked from its spare server, which outlives it as a template process does.
    """

    def __init__(self, recipe: str, words: Sequence[str], environment: Mapping[str, str], output: IO[Any]) -> None:
        self.returncode: int | None = None
        title = [sys.executable, "-m", "flows.compress", *words]
        request = {
            "entry": f"{__name__}:be_run",
            "arguments": [list(words)],
            "title": title,
            "environment": dict(environment),
            "directory": str(PROJECT),
            "path": [str(PROJECT), str(PROJECT / "tests"), *bare_path()],
            "modules": modules_of_run(recipe),
            "spare": True,
        }
        self.child = run_server(os.getpid()).fork(output.fileno(), request)
        while self.child.pid is None:
            with suppress(subprocess.TimeoutExpired):
                self.child.wait(0.05)
        self.pid: int = self.child.pid

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = self.child.wait(timeout)
            self.child.close()
        return self.returncode

    def kill(self) -> None:
        self.child.signal(signal.SIGKILL)


def left_by_forked_runs() -> list[psutil.Process]:
    """Processes of forked runs, and what these have started, that are still there."""
    servers = [psutil.Process(server.process.pid) for server in RUN_SERVERS if server.process is not None]
    return [process for server in servers for process in server.children(recursive=True)]


def be_run(descriptor: int, words: list[str]) -> None:
    """The forked process's work: what `python -m flows.compress` does."""
    for number, source in enumerate([os.open(os.devnull, os.O_RDONLY), descriptor, descriptor]):
        os.dup2(source, number)
    reopen_streams("utf-8")
    sys.argv = ["flows.compress", *words]
    runpy.run_module("flows.compress", run_name="__main__", alter_sys=True)


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
                {"module": module, "words": words, "files": list(map(str, files))},
            ],
            "environment": dict(environment),
            "directory": str(directory),
            "path": [*paths, *bare_path()],  # also of the steps that are forked from the spare server
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
