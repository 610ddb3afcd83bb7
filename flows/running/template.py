"""A run's template processes: they import the libraries that the run's steps need, once, and fork for each step.

There are two, so that a step without torch does not wait until the libraries of the others have been imported.

A step forked from it is a fresh process in every other respect: our own code is imported from the files as they are then, in a
session, environment and process group of its own.
"""

import ast
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from flows.planning.session import Session
from flows.planning.steps import Step
from flows.running.environment import step_variables
from tasks.shared.fork_client import Forked, ForkServer, ServerDied
from tasks.shared.store.keys import PROJECT, code_files

log = logging.getLogger("stillroom")
EVERY_STEP = ("pydantic.dataclasses", "yaml", "filelock")
"""Third-party modules that `flows.stage` imports."""
ENTRY = "flows.stage:main"
CLOSE_S = 20.0
"""How long to wait for steps that are being stopped; longer than they may take."""
OURS = frozenset({"tasks", "flows", *sys.stdlib_module_names})
"""Packages that the template does not import."""


class Template:
    """The template processes of one run, started when the first step has to be made.  Safe to use from several threads.

    wanted: False: every step is started as a plain process, as it is on systems other than Linux, where a fork is not safe.
    """

    def __init__(self, wanted: bool = True) -> None:
        self.servers: dict[bool, ForkServer] = {}
        self.wanted = wanted
        self.steps = 0
        self.lock = threading.Condition()

    def fork(
        self, session: Session, step: Step, words: Sequence[str], environment: Mapping[str, str], output: int
    ) -> Forked | None:
        """Start `flows.stage` with these arguments; None where a plain process has to do.  output: descriptor for what it prints."""
        request = {
            "entry": ENTRY,
            "arguments": [list(words)],
            "title": [sys.executable, "-m", "flows.stage", *words],
            "environment": dict(environment),
            "directory": str(Path.cwd()),
            "modules": [*EVERY_STEP, *third_party(step.module)],
            "own_group": True,
            "spare": True,
        }
        try:
            server = self._servers(session).get(step.accelerated)
            return server.fork(output, request) if server is not None else None
        except (ServerDied, OSError) as error:
            self.give_up(str(error))
            return None

    def give_up(self, reason: str) -> None:
        """Say once that there is no template process; every further step is started as a plain process."""
        with self.lock:
            if self.wanted:
                log.warning(
                    "no template process (%s): steps start as plain processes, which takes longer",
                    reason,
                )
            self.wanted = False

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the processes while a step runs."""
        with self.lock:
            self.steps += 1
        try:
            yield
        finally:
            with self.lock:
                self.steps -= 1
                self.lock.notify_all()

    def close(self) -> None:
        """End the processes, after the steps that are being stopped; start no other."""
        with self.lock:
            self.wanted = False
            self.lock.wait_for(lambda: self.steps == 0, CLOSE_S)
            servers, self.servers = self.servers, {}
        for server in servers.values():
            server.close()

    def _servers(self, session: Session) -> Mapping[bool, ForkServer]:
        """By whether a step is accelerated: its template process."""
        with self.lock:
            if self.wanted and sys.platform != "linux":
                self.give_up("a safe fork needs Linux")
            if self.wanted and not self.servers:
                variables = template_environment(session)
                for accelerated, modules in modules_of(session).items():
                    self.servers[accelerated] = ForkServer.start(modules, variables, quiet=True)
            return self.servers if self.wanted else {}


def template_environment(session: Session) -> dict[str, str]:
    """What libraries read when they are imported; each step has its own copy of everything else."""
    threads = max((session.threads(step) for step in session.plan.steps), default=1)
    return base_environment() | step_variables(threads, os.environ)


def base_environment() -> dict[str, str]:
    """Our environment, with our modules importable from any working directory."""
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"}


def modules_of(session: Session) -> dict[bool, list[str]]:
    """Third-party modules of the steps that are not finished, in the order in which steps need them, by `Step.accelerated`."""
    found: dict[bool, list[str]] = {}
    for step in session.plan.steps:
        if step.name not in session.places:
            found.setdefault(step.accelerated, list(EVERY_STEP)).extend(third_party(step.module))
    return {accelerated: list(dict.fromkeys(modules)) for accelerated, modules in found.items()}


@cache
def third_party(module: str) -> tuple[str, ...]:
    """Third-party modules that a technique imports, at any time; "module:name" for a name, which lazy packages import on access."""
    files = [file for file in code_files(module) if file.suffix == ".py"]
    return tuple(dict.fromkeys(name for file in files for name in _imports(file)))


@cache
def _imports(file: Path) -> tuple[str, ...]:
    return tuple(name for name in _named(ast.parse(file.read_text("utf-8"))) if _root(name) not in OURS)


def _named(node: ast.AST) -> Iterator[str]:
    """What a tree imports when it runs."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield from (f"{node.module}:{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from _named(child)


def _root(name: str) -> str:
    return name.partition(":")[0].partition(".")[0]
