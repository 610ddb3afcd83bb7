"""Work in a process of its own: results come back, deaths do not spread, and nobody is left behind."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tasks.shared.errors import ModelError
from tasks.shared.isolation import Failure, _guarded, run_isolated
from tasks.shared.store.keys import PROJECT


def double(value: int) -> tuple[int, int]:
    return 2 * value, os.getpid()


def die(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(name: str) -> None:
    raise ModelError(name, "NaN logits", "finite logits")


def exhaust(_: str) -> None:
    raise MemoryError


def break_down(_: str) -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory:\n  you tried to allocate 1 byte")


def mistake(_: str) -> None:
    raise AttributeError("a bug of ours")


def fill_disk(name: str) -> None:
    try:
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/scratch")
    except OSError as error:
        raise ModelError(name, f"cannot be loaded: {error}") from error


def wait(file: str) -> None:
    Path(file).write_text(str(os.getpid()))
    time.sleep(60)


def test_a_result_comes_back_from_another_process() -> None:
    found = run_isolated(double, 21)
    assert isinstance(found, tuple) and found[0] == 42 and found[1] != os.getpid()


def test_what_kills_it_is_told_in_one_line() -> None:
    assert run_isolated(die, "") == Failure("its process was killed: out of memory, most likely")
    assert run_isolated(exhaust, "") == Failure("out of memory")
    assert run_isolated(refuse, "student") == Failure("student: NaN logits wanted: finite logits")
    told = run_isolated(break_down, "")
    assert (
        isinstance(told, Failure)
        and told.reason.startswith("RuntimeError: DefaultCPUAllocator")
        and "\n" not in told.reason
    )


def test_a_bug_is_told_by_its_type_and_its_traceback_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_isolated(mistake, "") == Failure("AttributeError: a bug of ours")
    assert _guarded(mistake, ("",)) == Failure("AttributeError: a bug of ours")
    told = capfd.readouterr().err
    assert "Traceback" in told and "in mistake" in told


class SafetensorError(Exception):
    """As safetensors has it: of no kind but its own."""


@pytest.mark.parametrize("error", [SafetensorError("x"), IndexError("x"), ImportError("x"), OSError(errno.ENOENT, "x")])
def test_whatever_a_broken_model_raises_is_its_failure(error: Exception) -> None:
    def work() -> None:
        raise error

    told = _guarded(work, ())
    assert isinstance(told, Failure) and told.reason.startswith(f"{type(error).__name__}: ")


def test_an_interrupt_is_passed_on() -> None:
    def work() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _guarded(work, ())


def test_a_full_disk_is_no_failure_of_the_model() -> None:
    with pytest.raises(OSError, match="No space") as caught:
        run_isolated(fill_disk, "student")
    assert caught.value.errno == errno.ENOSPC


def test_nobody_is_left_when_the_step_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    code = f"from tests.unit.tasks.shared.test_isolation import run_isolated, wait\nif __name__ == '__main__': run_isolated(wait, {str(file)!r})"
    script = tmp_path / "step.py"
    script.write_text(code)
    step = subprocess.Popen([sys.executable, str(script)], cwd=PROJECT, env=os.environ | {"PYTHONPATH": str(PROJECT)})
    try:
        deadline = time.monotonic() + 60
        while not file.is_file() or not file.read_text():
            assert time.monotonic() < deadline and step.poll() is None
            time.sleep(0.1)
        child = int(file.read_text())
        step.kill()
        step.wait()
        deadline = time.monotonic() + 20
        while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the child outlived its step"
            time.sleep(0.2)
    finally:
        step.kill()
