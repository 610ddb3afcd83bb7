"""Processes told apart although pids are used again, and processes that end with another."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tasks.shared.processes import ProcessId
from tasks.shared.store.keys import PROJECT


def test_a_process_is_its_pid_and_its_start() -> None:
    us = ProcessId.of()
    assert us.is_alive() and ProcessId.parse(str(us)) == us == ProcessId.of(os.getpid())
    assert not replace(us, started=us.started + 1).is_alive(), "a later process with that pid"


def test_a_process_that_ended_is_gone_before_its_exit_code_is_read() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    known = ProcessId.of(child.pid)
    assert known.is_alive()
    child.kill()
    deadline = time.monotonic() + 10
    while known.is_alive():
        assert time.monotonic() < deadline
    assert not ProcessId.of(child.pid).is_alive(), "a zombie is no process to wait for"
    child.communicate()
    assert ProcessId.of(child.pid).started == 0


@pytest.mark.parametrize("text", ["", "12", "12-x", "x-12"])
def test_another_text_is_no_process(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        ProcessId.parse(text)


FOLLOWER = """
import subprocess, sys, time
from tasks.shared.processes import ProcessId, end_with
end_with(ProcessId.parse(sys.argv[1]), whole_group=len(sys.argv) > 2)
print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("whole_group", [False, True])
def test_a_process_ends_with_another(whole_group: bool) -> None:
    other = subprocess.Popen(["sleep", "600"])
    words = [sys.executable, "-c", FOLLOWER, str(ProcessId.of(other.pid)), *(["group"] if whole_group else [])]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    follower = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment)
    assert follower.stdout is not None
    grandchild = ProcessId.of(int(follower.stdout.readline()))
    assert follower.poll() is None
    other.kill()
    other.wait()
    assert follower.wait(10) == -signal.SIGKILL
    deadline = time.monotonic() + (10 if whole_group else 0)
    while grandchild.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert grandchild.is_alive() != whole_group
    if not whole_group:
        os.kill(grandchild.pid, signal.SIGKILL)
    follower.stdout.close()


def test_a_process_that_follows_one_that_is_gone_ends_at_once() -> None:
    gone = ProcessId(os.getpid(), 1)
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    words = [sys.executable, "-c", FOLLOWER, str(gone), "group"]
    done = subprocess.run(words, capture_output=True, start_new_session=True, env=environment, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
