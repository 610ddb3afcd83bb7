"""One GPU for one step, whoever started it."""

import os
import threading
import time
from pathlib import Path

import pytest

from flows.planning import gpus
from flows.planning.gpus import hold_gpu, may_use_gpu
from tasks.shared.errors import MachineError


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")


def test_a_step_sees_the_gpu_that_it_holds_and_no_other() -> None:
    with hold_gpu(True) as one:
        assert one == os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


def test_a_third_step_waits_for_the_first_of_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "gpus", lambda: ["3", "5"])
    over, order = threading.Event(), []

    def work() -> None:
        with hold_gpu(True) as gpu:
            order.append(f"begin {gpu}")
            over.wait(20)

    holders = [threading.Thread(target=work) for _ in range(2)]
    for holder in holders:
        holder.start()
    while len(order) < 2:
        time.sleep(0.01)
    assert sorted(order) == ["begin 3", "begin 5"]
    waiting = threading.Thread(target=work)
    waiting.start()
    time.sleep(0.3)
    assert len(order) == 2, "it waits"
    over.set()
    for thread in [*holders, waiting]:
        thread.join(20)
    assert len(order) == 3


def test_a_step_on_the_cpu_holds_none() -> None:
    assert not may_use_gpu("cpu") and may_use_gpu("cuda")
    with hold_gpu(may_use_gpu("cpu")) as gpu:
        assert gpu == ""


@pytest.mark.parametrize(("visible", "names"), [("", []), ("-1", []), ("3, 5", ["3", "5"]), ("3,-1,5", ["3"])])
def test_hidden_gpus_are_not_used(monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(gpus.Path, "glob", lambda *_: iter([Path("/dev/nvidia0")]))
    assert gpus.gpus() == names
    assert may_use_gpu("auto") == bool(names)


def test_a_step_that_wants_a_hidden_gpu_says_what_hides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(MachineError, match="1 process, and 0 GPUs(.|\\n)*CUDA_VISIBLE_DEVICES hides all"), hold_gpu(1):
        pass


def test_several_gpus_are_held_together_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "gpus", lambda: ["3", "5"])  # threads share what a process sees; steps are processes
    order: list[str] = []

    def work(count: int) -> None:
        with hold_gpu(count) as names:
            order.append(names)

    with hold_gpu(1) as one:
        pair = threading.Thread(target=work, args=(2,))
        pair.start()
        time.sleep(0.3)
        assert not order, "it waits for both"
        with hold_gpu(1) as other:
            assert {one, other} == {"3", "5"}, "and holds none meanwhile"
    pair.join(20)
    assert order == ["3,5"] and os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"
    with pytest.raises(MachineError, match="runtime.processes=0"), hold_gpu(3):
        pass
