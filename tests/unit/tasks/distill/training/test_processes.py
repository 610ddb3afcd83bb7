"""Two processes train as one does: same batches, curve and weights; what one of them dies of ends both, with its message."""

import csv
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.distill.sft import SFT
from tasks.distill.training.loop import train_model
from tasks.distill.training.processes import share_work
from tasks.distill.training.shares import WITHHELD, Blankable, Shares, collate_share
from tasks.shared.errors import ErrorList, MachineError, ModelError, TechniqueError
from tasks.shared.model.encoding import collate
from tasks.shared.model.loading import load_model
from tasks.shared.store.keys import PROJECT
from tasks.shared.technique import Inputs, Metrics
from tests.project_files import technique_options
from tests.settings_case import nested, setting_names
from tests.sharding import shard_on_cpus
from tests.tiny_llama import build_model, chats, empty_run, save_tiny, with_compute
from tests.two_terms import TwoTerms, find_two_errors

SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "learning_rate": 3e-3,
    "batch_size": 4,
    "accumulation": 2,
    "precision": "float32",
    "validation": 0.2,
    "patience": 0,
}
"""17 rows to train on and 4 to watch: an epoch's last batch has one row, so that one of two processes gets a blank."""


def train(model: Path, folder: Path, name: str, processes: int, fault: str = "", **more: Any) -> tuple[Path, Metrics]:
    out, run = empty_run(folder, name)
    settings = SFT(**SETTINGS | more)
    return out, train_model(settings, model, chats(21), TwoTerms(fault), out, with_compute(run, processes=processes))


def curve(out: Path) -> list[dict[str, float]]:
    with (out / "loss.csv").open() as stream:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]


def without_gradients(line: Mapping[str, float]) -> dict[str, float]:
    """Those of terms are not measured with fsdp."""
    return {name: value for name, value in line.items() if not name.endswith("_gradient")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "model", build_model(num_hidden_layers=2))


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Metrics]]:
    """Outputs and figures, by the number of processes."""
    folder = tmp_path_factory.mktemp("made")
    return {count: train(model, folder, f"by-{count}", count) for count in (1, 2)}


def test_every_row_is_computed_once_whatever_the_number_of_processes() -> None:
    order = list(range(9, -1, -1))
    whole = list(Shares(order, 4))
    assert whole == [[9, 8, 7, 6], [5, 4, 3, 2], [1, 0]]
    for count in (1, 2, 4):
        parts = [list(Shares(order, 4, rank, count)) for rank in range(count)]
        assert {len(part) for part in parts} == {len(whole)} == {len(Shares(order, 4, 0, count))}
        for number, batch in enumerate(whole):
            assert sorted(row for part in parts for row in part[number] if row >= 0) == sorted(batch)
            assert all(part[number] for part in parts), "each takes part in every backward pass"
    row = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
    real, blank = (collate_share(lambda rows: collate(rows, 0), [Blankable([row])[index]]) for index in (0, ~0))
    assert (real["labels"] == blank[WITHHELD]).all() and (blank["labels"] == -100).all() and WITHHELD not in real


def test_two_processes_train_as_one_does(made: dict[int, tuple[Path, Metrics]]) -> None:
    import torch

    (alone, figures), (both, told) = made[1], made[2]
    expected = curve(alone)
    assert len(expected) >= 6 and any("size_gradient" in line for line in expected)
    for one, two in zip(expected, curve(both), strict=True):
        assert two == pytest.approx(one, rel=2e-5, abs=1e-6)
    assert "negligible_terms" not in told and told.keys() == figures.keys()
    assert all(told[name] == pytest.approx(value, rel=1e-3) for name, value in figures.items())
    first, second = (load_model(out).state_dict() for out in (alone, both))
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-2, atol=1e-4)  # saved in bfloat16
    assert sorted(file.name for file in both.iterdir()) == sorted(file.name for file in alone.iterdir())


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        pytest.param("refuse", ModelError, "it stumbles", marks=pytest.mark.slow),
        ("break", RuntimeError, "a mistake of ours"),
        ("kill", MachineError, "signal 9"),
    ],
)
def test_what_one_dies_of_ends_both(
    model: Path, tmp_path: Path, fault: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        train(model, tmp_path, "two", 2, fault)
    assert not any(tmp_path.glob("two-out/*"))


def test_several_errors_of_one_process_arrive_as_they_were() -> None:
    with pytest.raises(ErrorList) as caught:
        share_work(1, "cpu", find_two_errors)
    assert [error.got for error in caught.value.errors] == ["no head", "no layers"]
    assert caught.value.errors[0].fix == "another model" and "no layers" in str(caught.value)


def test_a_batch_that_cannot_be_shared_evenly_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(TechniqueError, match="batch_size=6"):
        train(model, tmp_path, "three", 3)


CHILD = """
import json, sys
from pathlib import Path
from tasks.distill.sft import SFT
from tasks.distill.training.loop import train_model
from tasks.shared.technique import Compute, StepRun
from tests.tiny_llama import chats
from tests.two_terms import TwoTerms
model, scratch, out = map(Path, sys.argv[1:4])
run = StepRun("step", 0, scratch, compute=Compute(threads=1, processes=2, checkpoint_s=0))
train_model(SFT(**json.loads(sys.argv[4])), model, chats(21), TwoTerms("orphan"), out, run)
"""


@pytest.mark.slow
def test_they_end_with_the_process_that_started_them_and_go_on_to_the_same_end(
    model: Path, made: dict[int, tuple[Path, Metrics]], tmp_path: Path
) -> None:
    out, run = empty_run(tmp_path, "cut")
    command = [sys.executable, "-c", CHILD, str(model), str(run.scratch), str(out), json.dumps(SETTINGS)]
    child = subprocess.Popen(
        command, cwd=PROJECT, env=os.environ | {"PYTHONPATH": str(PROJECT)}, start_new_session=True
    )
    assert child.wait(timeout=120) == -signal.SIGKILL
    last = time.monotonic() + 10
    with suppress(ProcessLookupError):
        while time.monotonic() < last:
            os.killpg(child.pid, 0)  # ProcessLookupError once its whole group is gone
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGKILL)
        pytest.fail("processes outlive the one that started them")
    assert [path.parent.name for path in run.scratch.glob("checkpoints/*/complete.json")] == ["checkpoint-2"]
    shutil.copytree(run.scratch, tmp_path / "other")
    for processes, scratch, rel in ((2, run.scratch, 0.0), (1, tmp_path / "other", 2e-5)):
        again = tmp_path / f"again-{processes}"
        again.mkdir()
        resumed = replace(with_compute(run, processes=processes), scratch=scratch)
        train_model(SFT(**SETTINGS), model, chats(21), TwoTerms(), again, resumed)
        for found, expected in zip(curve(again), curve(made[2][0]), strict=True):
            assert found == pytest.approx(expected, rel=rel, abs=rel)


@pytest.mark.slow
@pytest.mark.parametrize("name", [file.stem for file in technique_options(("distill",))])
@pytest.mark.parametrize("option", ["", "lora.rank", "packing"])
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_every_technique_trains_in_two_processes_as_in_one(
    name: str, option: str, sharding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_on_cpus(monkeypatch)
    tests = importlib.import_module(f"tests.unit.tasks.distill.test_{name}")
    target = yaml.safe_load((PROJECT / "conf" / "distill" / f"{name}.yaml").read_text("utf-8"))["_target_"]
    module, _, cls = target.rpartition(".")
    technique = getattr(importlib.import_module(module), cls)
    if option and option not in setting_names(technique()):
        pytest.skip(f"{name} has no {option}")
    (tmp_path / "case").mkdir()
    with tests.settings_case(tmp_path / "case") as case:
        change = {option: tests.CHANGES[option].value} if option else {}
        settings = {**case.settings, "batch_size": 4, "epochs": 2, "validation": 0.3, **change}
        others = [one for one in case.more.values() if isinstance(one, Inputs)]
        for number, inputs in enumerate([case.inputs, *others]):
            curves = []
            for processes in (1, 2):
                out, run = empty_run(tmp_path, f"{number}-by-{processes}")
                technique(**nested(settings))(inputs, out, with_compute(run, processes=processes, sharding=sharding))
                curves.append(curve(out))
            assert len(curves[0]) >= 4
            for one, two in zip(*curves, strict=True):
                assert two == pytest.approx(one if sharding == "none" else without_gradients(one), rel=1e-4, abs=1e-5)
