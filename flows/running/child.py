"""A step's process: started, monitored, and ended with every process that it started."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from flows.planning.session import Session
from flows.planning.steps import Step
from flows.running.environment import step_variables
from flows.running.fork_template import Template, base_environment
from flows.running.work import RESULT, write_job
from tasks.shared.errors import StillroomError
from tasks.shared.fork_client import ServerDied
from tasks.shared.processes import ProcessId
from tasks.shared.progress import REPORT_VARIABLE

GRACE_S = 15
"""Seconds that a step may take to clean up after Ctrl-C before it is killed."""
POLL_S = 0.1
LOOK_S = 0.01


class StepFailed(StillroomError):
    """A step ended without an artifact; the message is the step's own."""

    def __init__(
        self,
        step: str,
        message: str,
        hint: str = "finished steps are kept; run the same command again",
        retryable: bool = False,
    ) -> None:
        advised = "\n  fix: " in message  # the step gives a fix of its own
        text = f"{message}\n  finished steps are kept" if advised else message
        super().__init__(f"step {step}", text, fix="" if advised else hint, retryable=retryable)


class Stopped(Exception):
    """The run was interrupted or canceled during this step."""


@dataclass(frozen=True)
class Progress:
    """Progress of a step: `done` of `total` units of the work named by `description`."""

    description: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True)
class Listener:
    """Receiver of a running step's output lines and progress; `stop`, once set, ends the step."""

    line: Callable[[str, str], None] = lambda step, text: None
    progress: Callable[[str, Progress], None] = lambda step, progress: None
    stop: threading.Event = field(default_factory=threading.Event)


def run_child(session: Session, step: Step, listener: Listener, template: Template | None = None) -> bool:
    """Run one step in a process group of its own and wait for its end.

    template: forks the step's process; without it, or if it is lost, the step is a plain process.
    Returns False if another run made the artifact in the meantime.  Raises StepFailed with the step's message, or Stopped if
    `listener.stop` was set.  The whole group has ended on return and on every error.
    """
    with job_folder(session) as folder:
        words = [
            session.plan.recipe,
            step.name,
            "--job",
            str(write_job(session, folder)),
            "--parent",
            str(ProcessId.of()),
        ]
        variables = environment(session, step, folder)
        code: int | None = None
        if template is not None:
            try:
                with template.in_use():
                    code = _run(
                        lambda output: template.fork(session, step, words, variables, output), step, folder, listener
                    )
            except ServerDied as error:
                template.give_up(str(error))
        if code is None:
            code = _run(lambda output: PlainChild(words, variables, output), step, folder, listener)
        message = folder / RESULT
        result = json.loads(message.read_text("utf-8")) if message.is_file() else {}
    if code:
        raise failure(step.name, code, result, listener.stop.is_set())
    return bool(result.get("made", True))


def _run(start: Callable[[int], "Child | None"], step: Step, folder: Path, listener: Listener) -> int | None:
    """Start a process, forward its output and progress, and return its exit code.

    start: gets the descriptor for the output.  If it cannot start a process, it returns None, and so does this function.
    """
    reading, writing = os.pipe()
    try:
        child = start(writing)
    finally:
        os.close(writing)
    reader = threading.Thread(target=_read, args=(os.fdopen(reading, "rb"), step.name, listener.line), daemon=True)
    reader.start()
    try:
        return None if child is None else _wait(child, step.name, folder / "progress.json", listener)
    except BaseException:
        assert child is not None
        stop_group(child)
        raise
    finally:
        reader.join(timeout=5)  # a process that has left the group would hold the pipe open
        if child is not None:
            child.close()


class Child(Protocol):
    """A step's process, the leader of its own process group.

    pid: None if it has not started yet.
    """

    pid: int | None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; the rest of the group is killed.

        Raises subprocess.TimeoutExpired.
        """
        ...

    def signal(self, number: int, *, whole_group: bool = False) -> None:
        """Send a signal to the process or its group, unless it has ended."""
        ...

    def close(self) -> None:
        """Release the process; one that has not started will not start."""
        ...


class PlainChild:
    """A step as a separate Python program, for systems and runs without a template.

    words: arguments of `flows.stage`.
    output: file descriptor for its output.
    """

    def __init__(self, words: Sequence[str], variables: Mapping[str, str], output: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.stage", *words],
            start_new_session=True,
            env=dict(variables),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        self.pid: int | None = self.process.pid

    def wait(self, timeout: float | None = None) -> int:
        """See `Child`.  The group is killed before the system can reuse the pid."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.process.returncode is None:
            if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                return self.process.wait()
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(self.process.args, timeout or 0.0)
            time.sleep(LOOK_S)
        return self.process.returncode

    def signal(self, number: int, *, whole_group: bool = False) -> None:
        """See `Child`."""
        if self.process.returncode is None:  # not reaped, so the pid is still its own
            with suppress(ProcessLookupError):
                (os.killpg if whole_group else os.kill)(self.process.pid, number)

    def close(self) -> None:
        """See `Child`; there is nothing to release."""


@contextmanager
def job_folder(session: Session) -> Iterator[Path]:
    """Yield an empty folder for one step's job; remove those of killed flows."""
    base = session.store.home / ".jobs"
    base.mkdir(parents=True, exist_ok=True)
    for old in base.iterdir():
        if not _in_use(old.name):
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{ProcessId.of()}-", dir=base) as name:
        yield Path(name)


def _in_use(folder: str) -> bool:
    """Return True if the flow whose job folder has this name is alive."""
    try:
        return ProcessId.parse(folder.rpartition("-")[0]).is_alive()
    except ValueError:
        return False


def environment(session: Session, step: Step, folder: Path) -> dict[str, str]:
    """Environment of a step: our modules are importable, and progress goes to a file."""
    return (
        base_environment()
        | step_variables(session.threads(step), os.environ)
        | {REPORT_VARIABLE: str(folder / "progress.json")}
    )


def failure(step: str, code: int, result: Mapping[str, Any], stopping: bool) -> Exception:
    """Return the error for a child's exit code.

    result: the step's message, empty if it left none.
    stopping: the run is being stopped.
    """
    if stopping:
        return Stopped(step)
    if "error" in result:
        return StepFailed(step, result["error"], retryable=bool(result["retryable"]))
    if code == -signal.SIGKILL:
        return StepFailed(
            step,
            "it was killed (signal 9)",
            "if memory ran out, use smaller batches or a smaller model; finished steps are kept",
        )
    if code in {130, -signal.SIGINT, -signal.SIGTERM}:
        return StepFailed(step, "its process was ended from outside")
    return StepFailed(step, f"it ended with code {code}; its traceback is above")


def _read(stream: IO[bytes], step: str, line: Callable[[str, str], None]) -> None:
    with stream:
        for raw in stream:
            if text := raw.decode("utf-8", "replace").rstrip():
                line(step, text)


def _wait(child: Child, step: str, report: Path, listener: Listener) -> int:
    """Forward every progress report until the process ends, and return its exit code."""
    seen = 0
    while True:
        with suppress(subprocess.TimeoutExpired):
            return child.wait(POLL_S)
        if listener.stop.is_set():
            raise Stopped(step)
        with suppress(OSError, ValueError, TypeError):  # no report yet, or an unreadable one
            if (written := report.stat().st_mtime_ns) != seen:
                seen = written
                listener.progress(step, Progress(**json.loads(report.read_text("utf-8"))))


def stop_group(child: Child) -> None:
    """Interrupt a child's process group, wait up to GRACE_S, then kill the rest of it."""
    child.signal(signal.SIGINT, whole_group=True)
    with suppress(subprocess.TimeoutExpired, ServerDied):
        child.wait(GRACE_S if child.pid is not None else 0)
    child.signal(signal.SIGKILL, whole_group=True)
    with suppress(ServerDied):
        if child.pid is not None:
            child.wait()
