import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flows.planning.config import Runtime
from flows.planning.session import Session
from flows.planning.steps import Plan
from flows.running.child import Child, PlainChild, Stopped, failure, job_folder, stop_group
from flows.running.environment import SPIN_COUNT, step_variables
from tasks.shared.fork_client import Forked, ForkServer
from tasks.shared.processes import ProcessId


def test_a_step_that_says_what_is_wrong_is_quoted() -> None:
    error = failure("slim", 2, {"error": "steps.slim: bad", "retryable": True}, stopping=False)
    assert "steps.slim: bad" in str(error) and getattr(error, "retryable", False)


def test_a_kill_after_the_work_was_done_is_still_a_kill() -> None:
    assert "signal 9" in str(failure("slim", -signal.SIGKILL, {"made": True}, stopping=False))


def test_a_kill_is_explained() -> None:
    assert "memory" in str(failure("slim", -signal.SIGKILL, {}, stopping=False))


@pytest.mark.parametrize("code", [130, -signal.SIGTERM, -signal.SIGINT])
def test_only_a_run_that_stops_takes_a_signal_for_a_stop(code: int) -> None:
    assert isinstance(failure("slim", code, {}, stopping=True), Stopped)
    assert "ended from outside" in str(failure("slim", code, {}, stopping=False))


TOWER = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"


def a_child(script: str, output: int) -> PlainChild:
    """A plain child that runs a script instead of a step."""
    child = PlainChild.__new__(PlainChild)
    child.process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stdout=output)
    child.pid = child.process.pid
    return child


def a_forked(script: str, output: int) -> Iterator[Forked]:
    server = ForkServer.start([])
    request = {
        "entry": "builtins:exec", "arguments": [script, {}], "own_group": True, "spare": True,
        "environment": dict(os.environ), "directory": str(Path.cwd()),
    }  # fmt: skip
    forked = server.fork(output, request)
    yield forked
    forked.close()
    server.close()


@pytest.fixture(params=["plain", "forked"])
def tower(request: pytest.FixtureRequest) -> Iterator[tuple[Child, psutil.Process]]:
    """A step's process, and the process that it has started."""
    reading, writing = os.pipe()
    started = iter([a_child(TOWER, writing)]) if request.param == "plain" else a_forked(TOWER, writing)
    child = next(started)
    os.close(writing)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0)
    with os.fdopen(reading) as lines:
        grandchild = psutil.Process(int(lines.readline()))
        with suppress(subprocess.TimeoutExpired):
            child.wait(0)
        yield child, grandchild
    list(started)


def is_gone(process: psutil.Process) -> bool:
    _, alive = psutil.wait_procs([process], timeout=10)
    return not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_a_group_is_taken_down_with_its_children(tower: tuple[Child, psutil.Process]) -> None:
    child, grandchild = tower
    stop_group(child)
    assert child.wait(0) != 0 and is_gone(grandchild)


def test_a_step_that_is_killed_leaves_nothing_of_its_group(tower: tuple[Child, psutil.Process]) -> None:
    child, grandchild = tower
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL
    assert is_gone(grandchild), "vLLM would hold the GPU"


def test_a_job_folder_is_taken_away_although_its_pid_is_in_use_again(tmp_path: Path) -> None:
    session = Session(Plan({"name": "trial"}, {}, ()), Runtime(root=str(tmp_path)))
    base = session.store.home / ".jobs"
    us = ProcessId.of()
    ours, later = base / f"{us}-abc", base / f"{ProcessId(us.pid, us.started - 1)}-abc"
    for folder in (ours, later):
        folder.mkdir(parents=True)
    with job_folder(session) as folder:
        assert sorted(base.iterdir()) == sorted([ours, folder])


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_a_users_own_way_to_wait_is_kept(name: str) -> None:
    given = {name: "7", "HF_HUB_OFFLINE": "0"}
    added = step_variables(2, given)
    assert not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "HF_HUB_OFFLINE"} & set(added)
    assert added["HF_DATASETS_OFFLINE"] == "0" and added["OMP_NUM_THREADS"] == "2"


def test_threads_sleep_soon_unless_the_user_says_otherwise() -> None:
    assert step_variables(2, {})["GOMP_SPINCOUNT"] == str(SPIN_COUNT)
