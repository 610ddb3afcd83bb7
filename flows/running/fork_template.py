"""Template process of a run: it imports the libraries once, then forks for each step.

It imports while it has nothing else to do, and for a step what that step needs: a step without torch does not wait for torch.  A
forked step is a fresh process in every other respect: it imports our code from the files as they are then, in its own session,
environment and process group.
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
EVERY_STEP = (
    "pydantic.dataclasses", "yaml", "filelock", "psutil", "importlib.metadata", "urllib.request", "concurrent.futures.thread",
)  # fmt: skip
"""Modules that every step imports whatever its technique is, and that take long: third-party ones, and three of Python's own."""
ENTRY = "flows.stage:main"
CLOSE_S = 20.0
"""Seconds to wait for steps that are being stopped; longer than their grace period."""
OURS = frozenset({"tasks", "flows", *sys.stdlib_module_names})
"""Packages that the template does not import."""
STARTS_THREADS = frozenset({"onnxruntime", "openvino"})
"""Packages that start threads when they are imported, after which a process must not fork: a step imports them itself."""


class Template:
    """Template process of one run, started when the first step has to be made.

    Safe to use from several threads.
    A run that was itself forked takes the spare server that it was given.
    wanted: False starts every step as a plain process.  So do systems other than Linux, where a fork is not safe.
    """

    def __init__(self, wanted: bool = True) -> None:
        self.server: ForkServer | None = None
        self.wanted = wanted
        self.steps = 0
        self.lock = threading.Condition()

    def fork(
        self, session: Session, step: Step, words: Sequence[str], environment: Mapping[str, str], output: int
    ) -> Forked | None:
        """Start `flows.stage` with these arguments; None if the step needs a plain process.

        output: file descriptor for its output.
        """
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
        """Warn once, and start every further step as a plain process."""
        with self.lock:
            if self.wanted:
                log.warning(
                    "no template process (%s): steps start as plain processes, which takes longer",
                    reason,
                )
            self.wanted = False

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the template process alive while a step runs."""
        with self.lock:
            self.steps += 1
        try:
            yield
        finally:
            with self.lock:
                self.steps -= 1
                self.lock.notify_all()

    def close(self) -> None:
        """End the template process once the steps that are being stopped have ended."""
        with self.lock:
            self.wanted = False
            self.lock.wait_for(lambda: self.steps == 0, CLOSE_S)
            server, self.server = self.server, None
        if server is not None and server.process is not None:  # a spare server of ours serves the next run, too
            server.close()

    def _server(self, session: Session) -> ForkServer | None:
        with self.lock:
            if self.wanted and sys.platform != "linux":
                self.give_up("a safe fork needs Linux")
            if self.wanted and self.server is None:
                self.server = ForkServer.inherited() or ForkServer.start(
                    modules_of(session), template_environment(session), quiet=True
                )
            return self.server if self.wanted else None


def template_environment(session: Session) -> dict[str, str]:
    """Environment of the template process: variables that libraries read on import."""
    threads = max((session.threads(step) for step in session.plan.steps), default=1)
    return base_environment() | step_variables(threads, os.environ)


def base_environment() -> dict[str, str]:
    """Present environment, with our modules importable from any working directory."""
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"}


def modules_of(session: Session) -> list[str]:
    """Third-party modules of the unfinished steps, in the order of first use."""
    steps = [step for step in session.plan.steps if step.name not in session.places]
    return list(dict.fromkeys([*EVERY_STEP, *(name for step in steps for name in third_party(step.module))]))


@cache
def third_party(module: str) -> tuple[str, ...]:
    """Third-party modules that a technique imports, also inside functions.

    "module:name" for a name from a module, since lazy packages import it on access.
    """
    files = [file for file in code_files(module) if file.suffix == ".py"]
    return tuple(dict.fromkeys(name for file in files for name in _imports(file)))


@cache
def _imports(file: Path) -> tuple[str, ...]:
    return tuple(
        name for name in _named(ast.parse(file.read_text("utf-8"))) if _root(name) not in OURS | STARTS_THREADS
    )


def _named(node: ast.AST) -> Iterator[str]:
    """Yield the imports in a syntax tree, except those for type checking only."""
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
