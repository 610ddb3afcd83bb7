"""A step as a process of its own: started, listened to, and taken down with everything that it started."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from flows.planning.session import Session
from flows.planning.steps import Step
from flows.running.work import RESULT, write_job
from tasks.shared.errors import StillroomError
from tasks.shared.progress import REPORT_VARIABLE
from tasks.shared.store.keys import PROJECT

GRACE_S = 15
"""How long a step may tidy up after Ctrl-C before it is killed."""
POLL_S = 0.1


class StepFailed(StillroomError):
    """A step ended without an artifact; the message is the step's own."""

    def __init__(
        self,
        step: str,
        message: str,
        hint: str = "finished steps are kept; run the same command again",
        retryable: bool = False,
    ) -> None:
        advised = "\n  fix: " in message  # the step's own advice is better than ours
        text = f"{message}\n  finished steps are kept" if advised else message
        super().__init__(f"step {step}", text, fix="" if advised else hint, retryable=retryable)


class Stopped(Exception):
    """The run was interrupted or cancelled while this step was at work."""


@dataclass(frozen=True)
class Progress:
    """How far a step is: `done` of `total` units of what `description` says."""

    description: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True)
class Listener:
    """Who wants to hear of a running step: its lines of output, its progress, and from whom to hear that it must stop."""

    line: Callable[[str, str], None] = lambda step, text: None
    progress: Callable[[str, Progress], None] = lambda step, progress: None
    stop: threading.Event = field(default_factory=threading.Event)


def run_child(session: Session, step: Step, listener: Listener) -> bool:
    """Run one step in a process group of its own and wait for it; False if another run made the artifact meanwhile.

    Raises StepFailed with the step's message, or Stopped when `listener.stop` was set; the whole group is gone then.
    """
    with job_folder(session) as folder:
        job = write_job(session, folder)
        command = [sys.executable, "-m", "flows.stage", session.plan.recipe, step.name, "--job", str(job)]
        child = subprocess.Popen(
            [*command, "--parent", str(os.getpid())],
            start_new_session=True,
            env=environment(folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        assert child.stdout is not None
        reader = threading.Thread(target=_read, args=(child.stdout, step.name, listener.line), daemon=True)
        reader.start()
        try:
            code = _wait(child, step.name, folder / "progress.json", listener)
        except BaseException:
            stop_group(child)
            raise
        finally:
            reader.join(timeout=5)  # a grandchild that lives on would hold the pipe open
        error = folder / RESULT
        told = json.loads(error.read_text("utf-8")) if error.is_file() else {}
    if code:
        raise failure(step.name, code, told, listener.stop.is_set())
    return bool(told.get("made", True))


@contextmanager
def job_folder(session: Session) -> Iterator[Path]:
    """An empty folder for one step's job; those of flows that were killed are taken away."""
    base = session.store.home / ".jobs"
    base.mkdir(parents=True, exist_ok=True)
    for old in base.glob("*-*"):
        if not psutil.pid_exists(int(old.name.partition("-")[0])):
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{os.getpid()}-", dir=base) as name:
        yield Path(name)


def environment(folder: Path) -> dict[str, str]:
    """The child's environment: our modules importable from any working directory, progress reported to a file."""
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONIOENCODING": "utf-8",
        REPORT_VARIABLE: str(folder / "progress.json"),
    }


def failure(step: str, code: int, told: Mapping[str, Any], stopping: bool) -> Exception:
    """What a child's exit code means."""
    if stopping:
        return Stopped(step)
    if "error" in told:
        return StepFailed(step, told["error"], retryable=bool(told["retryable"]))
    if code == -signal.SIGKILL:
        return StepFailed(
            step,
            "it was killed (signal 9)",
            "if memory ran out, use smaller batches or a smaller model; finished steps are kept",
        )
    if code in {130, -signal.SIGINT, -signal.SIGTERM}:
        return StepFailed(step, "somebody else ended its process")
    return StepFailed(step, f"it ended with code {code}; its traceback is above")


def _read(stream: IO[bytes], step: str, line: Callable[[str, str], None]) -> None:
    with stream:
        for raw in stream:
            if text := raw.decode("utf-8", "replace").rstrip():
                line(step, text)


def _wait(child: "subprocess.Popen[bytes]", step: str, report: Path, listener: Listener) -> int:
    """The exit code; on the way, hands on every new report."""
    seen = 0
    while True:
        with suppress(subprocess.TimeoutExpired):
            return child.wait(POLL_S)
        if listener.stop.is_set():
            raise Stopped(step)
        with suppress(OSError, ValueError, TypeError):  # not there yet, or the step wrote nonsense: no progress to show
            if (written := report.stat().st_mtime_ns) != seen:
                seen = written
                listener.progress(step, Progress(**json.loads(report.read_text("utf-8"))))


def stop_group(child: "subprocess.Popen[bytes]") -> None:
    """Interrupt a child's process group, wait a little, then kill what is left of it."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
