import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from flows import child
from flows.child import Stopped, failure, gpus, hold_gpu, stop_group


def test_a_step_that_says_what_is_wrong_is_quoted() -> None:
    error = failure("slim", 2, {"error": "steps.slim: bad", "passing": True}, stopping=False)
    assert "steps.slim: bad" in str(error) and getattr(error, "passing", False)


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


def test_one_gpu_is_held_by_one_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(child.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    session: Any = SimpleNamespace(runtime=SimpleNamespace(device="cuda"))
    step: Any = SimpleNamespace(name="slim", accelerated=True)
    stop = threading.Event()
    assert gpus() == ["3", "5"]
    with hold_gpu(session, step, stop) as one, hold_gpu(session, step, stop) as two:
        assert [one, two] == [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}]
        threading.Timer(0.3, stop.set).start()
        began = time.monotonic()
        with pytest.raises(Stopped), hold_gpu(session, step, stop):
            pass
        assert time.monotonic() - began >= 0.2, "it waited until it was told to stop"
    with hold_gpu(session, step, threading.Event()) as again:
        assert again == {"CUDA_VISIBLE_DEVICES": "3"}


def test_a_step_on_the_cpu_holds_none() -> None:
    session: Any = SimpleNamespace(runtime=SimpleNamespace(device="cpu"))
    step: Any = SimpleNamespace(name="slim", accelerated=True)
    with hold_gpu(session, step, threading.Event()) as environment:
        assert environment == {}
