"""A run's template process: it imports the libraries that the run's steps need, once, and forks for each step.

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
from tasks.shared.fork_server import Forked, ForkServer, ServerDied
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
    """The template process of one run, started when the first step has to be made.  Safe to use from several threads.

    wanted: False, or a system without a safe fork: every step is started as a plain process.
    """

    def __init__(self, wanted: bool = True) -> None:
        self.server: ForkServer | None = None
        self.wanted = wanted and sys.platform == "linux"
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
            server = self._server(session)
            return server.fork(output, request) if server is not None else None
        except (ServerDied, OSError) as error:
            self.give_up(str(error))
            return None

    def give_up(self, reason: str) -> None:
        """Say once that the process is lost; every further step is started as a plain process."""
        with self.lock:
            if self.wanted:
                log.warning(
                    "the steps' template process is lost (%s); steps start as plain processes, which takes longer",
                    reason,
                )
            self.wanted = False

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the process while a step runs."""
        with self.lock:
            self.steps += 1
        try:
            yield
        finally:
            with self.lock:
                self.steps -= 1
                self.lock.notify_all()

    def close(self) -> None:
        """End the process, after the steps that are being stopped; start no other."""
        with self.lock:
            self.wanted = False
            self.lock.wait_for(lambda: self.steps == 0, CLOSE_S)
            server, self.server = self.server, None
        if server is not None:
            server.close()

    def _server(self, session: Session) -> ForkServer | None:
        with self.lock:
            if self.wanted and self.server is None:
                self.server = ForkServer.start(modules_of(session), template_environment(session), quiet=True)
            return self.server if self.wanted else None


def template_environment(session: Session) -> dict[str, str]:
    """What libraries read when they are imported; each step has its own copy of everything else."""
    threads = max((session.threads(step) for step in session.plan.steps), default=1)
    return base_environment() | step_variables(threads, os.environ)


def base_environment() -> dict[str, str]:
    """Our environment, with our modules importable from any working directory."""
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def modules_of(session: Session) -> list[str]:
    """Third-party modules of the steps that are not finished, in the order in which steps need them."""
    left = [step for step in session.plan.steps if step.name not in session.places]
    return list(dict.fromkeys([*EVERY_STEP, *(name for step in left for name in third_party(step.module))]))


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
