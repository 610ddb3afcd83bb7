import signal
import subprocess
import sys

import psutil
import pytest

from flows.running.child import Stopped, failure, stop_group


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
    assert "somebody else" in str(failure("slim", code, {}, stopping=False))


def test_a_group_is_taken_down_with_its_children() -> None:
    script = (
        "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); print('up', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    grandchildren = psutil.Process(process.pid).children()
    stop_group(process)
    process.stdout.close()
    assert process.returncode is not None and len(grandchildren) == 1
    _, alive = psutil.wait_procs(grandchildren, timeout=10)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
