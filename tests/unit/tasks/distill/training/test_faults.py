"""What goes wrong in a training: a loss that runs away, memory that is too small, data that is too little, another's checkpoints."""

import logging
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.distill.sft import SFT
from tasks.distill.training import checkpoints, loop
from tasks.distill.training.loop import check_finite, train_model
from tasks.distill.training.memory import ROOM, Demand
from tasks.distill.training.objective import Answers, Objective
from tasks.distill.training.watch import overfits, runs_away
from tasks.shared.errors import DataError, TechniqueError
from tasks.shared.formats.rows import Message, Row
from tasks.shared.isolation import Failure, preload, run_isolated
from tasks.shared.model.encoding import encode
from tasks.shared.model.loading import load_model
from tasks.shared.store.keys import PROJECT, Digests
from tasks.shared.technique import Metrics, StepRun
from tests.tiny_llama import build_model, build_tokenizer, chats, empty_run, save_tiny, with_compute
from tests.two_terms import TwoTerms, train_in

SETTINGS: dict[str, Any] = {
    "epochs": 3, "learning_rate": 3e-3, "batch_size": 2, "precision": "float32", "validation": 0.15, "patience": 0,
}  # fmt: skip
"""22 of 25 rows to train on: 11 steps an epoch, a log line every second one."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "model", build_model(num_hidden_layers=2))


def train(model: Path, place: tuple[Path, StepRun], objective: Objective, **more: Any) -> Metrics:
    out, run = place
    return train_model(SFT(**SETTINGS | more), model, chats(25), objective, out, run)


def content(out: Path) -> str:
    return Digests(out.parent / "none").tree(out)


class Stop(Exception):
    pass


def stopped(monkeypatch: pytest.MonkeyPatch, step: int, work: Callable[[], Any]) -> None:
    """The work, ended right after its checkpoint of that step."""
    genuine = checkpoints._mark

    def mark(folder: Path, trainer: Any) -> None:
        genuine(folder, trainer)
        if trainer.state.global_step == step:
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(checkpoints, "_mark", mark)
        work()


def test_two_terms_with_their_telemetry_go_on_to_the_same_end(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = empty_run(tmp_path, "whole"), empty_run(tmp_path, "cut")
    train(model, whole, TwoTerms(), epochs=2)
    out, run = cut
    stopped(monkeypatch, 13, lambda: train(model, (out, with_compute(run, checkpoint_s=0.0)), TwoTerms(), epochs=2))
    train(model, cut, TwoTerms(), epochs=2)
    assert content(out) == content(whole[0]), "sums and gradients since the last log line were in the checkpoint"
    names = (out / "loss.csv").read_text().splitlines()[0].split(",")
    assert {"hard_loss", "size_loss", "hard_gradient", "size_gradient"} <= set(names)


def test_the_terms_are_means_that_add_up_to_the_loss(model: Path, tmp_path: Path) -> None:
    place = empty_run(tmp_path)
    train(model, place, TwoTerms(), epochs=1)
    head, *lines = [line.split(",") for line in (place[0] / "loss.csv").read_text().splitlines()]
    told = [dict(zip(head, line, strict=True)) for line in lines]
    steps = [line for line in told if line["train_loss"]]
    assert len(steps) == 5
    for line in steps:
        assert float(line["hard_loss"]) + float(line["size_loss"]) == pytest.approx(float(line["train_loss"]), rel=1e-5)


class Poisoned(Answers):
    """A loss that is no number from a step on."""

    def __init__(self, since: int) -> None:
        self.since = since

    def terms(self, model: Any, batch: Any, count: Any) -> dict[str, Any]:
        found = super().terms(model, batch, count)
        return {name: value * float("nan") for name, value in found.items()} if self.step >= self.since else found


def test_a_loss_that_is_no_number_keeps_the_best_epoch_also_in_a_run_that_goes_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    whole, cut = empty_run(tmp_path, "whole"), empty_run(tmp_path, "cut")
    figures = train(model, whole, Poisoned(14))
    assert figures["diverged"] == "kept step 11" and "steps.whole.learning_rate=0.00075" in caplog.text
    weights = load_model(whole[0]).state_dict().values()
    assert all(torch.isfinite(weight).all() for weight in weights)
    out, run = cut
    stopped(monkeypatch, 15, lambda: train(model, (out, with_compute(run, checkpoint_s=0.0)), Poisoned(14)))
    assert train(model, cut, Poisoned(14)) == figures and content(out) == content(whole[0])
    assert train(model, (tmp_path / "whole-out", whole[1]), Poisoned(14)) == figures, "killed before it was published"


def test_weights_that_are_no_numbers_are_not_saved(model: Path, tmp_path: Path) -> None:
    broken = build_model()
    broken.model.norm.weight.data[3] = float("inf")
    with pytest.raises(TechniqueError, match="model.norm.weight"):
        check_finite(broken, SFT(), empty_run(tmp_path)[1])
    with pytest.raises(TechniqueError, match="a smaller step"):
        train(
            model, empty_run(tmp_path, "late"), Poisoned(12), epochs=1, validation=0.0
        )  # the 13th step, after the last line


def losses(*values: float) -> list[dict[str, float]]:
    return [{"step": step, "loss": value} for step, value in enumerate(values, start=1)]


def test_what_counts_as_running_away() -> None:
    assert (
        runs_away(losses(2, 1, float("nan"))) and runs_away(losses(2, float("inf"))) and runs_away(losses(2, 7, 8, 9))
    )
    assert not runs_away(losses(2, 7, 8, 5)), "three lines in a row"
    assert not runs_away(losses(0.1, 0.9, 0.9, 0.9)), "a student that begins as its teacher begins at nothing"
    assert not runs_away([])


def test_what_counts_as_learning_by_heart() -> None:
    def history(*pairs: tuple[float, float]) -> list[dict[str, float]]:
        return [
            entry
            for step, (loss, held) in enumerate(pairs, start=1)
            for entry in ({"step": step, "loss": loss}, {"step": step, "eval_loss": held})
        ]

    assert overfits(history((2, 2), (1, 1.5), (0.5, 1.8)))
    assert not overfits(history((2, 2), (1, 1.5), (0.5, 1.6))), "within a tenth of the best"
    assert not overfits(history((2, 2), (1, 1.5), (1.2, 1.8))), "both rise: that is another trouble"
    assert not overfits(history((2, 2)))


def test_a_training_that_learns_by_heart_says_so(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rote = {"epochs": 7, "learning_rate": 1e-2, "schedule": "constant_with_warmup", "batch_size": 4}
    figures = train(model, empty_run(tmp_path), Answers(), **rote)
    assert str(figures["overfitting"]).startswith("kept step") and "3 to 5 are usual" in caplog.text
    caplog.clear()
    train(model, empty_run(tmp_path, "unwatched"), Answers(), epochs=5.1, validation=0.0, batch_size=25)
    assert "overfitting would go unnoticed" in caplog.text


def test_rows_without_an_answer_are_named() -> None:
    good, bad = chats(2)
    bad = bad.model_copy(update={"messages": (Message(role="user", content="And then?"),)})
    with pytest.raises(DataError, match="1 conversations have no answer: r1"):
        encode([good, bad], build_tokenizer(), 512)


def one_group(rows: list[Row]) -> list[Row]:
    return [row.model_copy(update={"group": "g"}) for row in rows]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "0 rows"),
        (chats(1), "1 rows"),
        (chats(2), "validation=0"),
        (one_group(chats(20)), "20 rows in 1 phrasing groups"),
    ],
)
def test_too_little_data_is_refused_with_what_to_do(model: Path, tmp_path: Path, rows: list[Row], words: str) -> None:
    out, run = empty_run(tmp_path)
    with pytest.raises(DataError, match=words):
        train_model(SFT(**SETTINGS), model, rows, Answers(), out, run)


def test_two_rows_are_enough_without_validation(model: Path, tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    settings = SFT(**SETTINGS | {"validation": 0.0, "batch_size": 16})
    assert train_model(settings, model, one_group(chats(2)), Answers(), out, run)["optimizer_steps"] == 3


def test_another_trainings_checkpoints_are_refused_by_name(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = empty_run(tmp_path)
    caplog.set_level(logging.INFO)
    train(model, place, Answers(), epochs=1)
    fresh = empty_run(tmp_path, "fresh")
    expected = train(model, fresh, Answers(), epochs=1, learning_rate=1e-3)
    out, run = place
    caplog.clear()
    assert train(model, (out, replace(run, step="step")), Answers(), epochs=1, learning_rate=1e-3) == expected
    assert "it belongs to another training: learning_rate 0.003 -> 0.001" in caplog.text
    assert "resuming" not in caplog.text
    assert content(out) == content(fresh[0])


def test_weights_rows_and_seed_are_part_of_what_a_checkpoint_is_for(tmp_path: Path) -> None:
    run = empty_run(tmp_path)[1]
    rows = [{"input_ids": [3, 4, 5], "labels": [-100, 4, 5]}]
    base = checkpoints.identity_of(SFT(), build_model(), rows, run)
    assert checkpoints.identity_of(SFT(gradient_checkpointing=True), build_model(), rows, run) == base
    others = {
        "weights": (SFT(), build_model(seed=1), rows, run),
        "rows": (SFT(), build_model(), [{"input_ids": [3, 4, 6], "labels": [-100, 4, 6]}], run),
        "seed": (SFT(), build_model(), rows, replace(run, seed=7)),
        "epochs": (SFT(epochs=2), build_model(), rows, run),
    }
    for name, changed in others.items():
        found = checkpoints.identity_of(*changed)
        assert [key for key in base if found[key] != base[key]] == [name]


def test_out_of_memory_names_what_it_took_and_a_batch_that_fits(model: Path, tmp_path: Path) -> None:
    """A real failure: the address space is limited to what the process has and 500 MB, a third of what the batch takes."""
    preload("trl.trainer.sft_trainer", "datasets")
    failed = run_isolated(train_in, 500e6, model, tmp_path / "large", {"batch_size": 256})
    assert isinstance(failed, Failure), f"it fitted: {failed} optimizer steps"
    assert "out of memory at 256 conversations of up to" in failed.reason
    assert "GB for weights, gradients and moments and" in failed.reason
    found = re.search(r"batch_size=(\d+) steps.step.accumulation=(\d+)", failed.reason)
    assert found and int(found[1]) * int(found[2]) == 256
    fits = {"batch_size": int(found[1]), "accumulation": int(found[2])}
    assert run_isolated(train_in, 500e6, model, tmp_path / "small", fits) == 1, "one optimizer step, as was asked for"


def test_the_demand_of_a_batch() -> None:
    demand = Demand(build_model().config, fixed=0.0, tokens=100, eager=True, size=4)
    per_row = demand.batch(2, False) - demand.batch(1, False)
    layer = 6 * 64 + 3 * 64 + 3 * 32 + 4 * 128 + 4 * 100
    assert per_row == pytest.approx(100 * 4 * (4 * layer + 4 * 512))
    assert demand.batch(8, True) < 0.6 * demand.batch(8, False)
    assert replace(demand, eager=False).batch(8, False) < demand.batch(8, False)
    assert demand.most_rows(16, False, demand.batch(5, False) / ROOM) == 4, "a divisor of the batch"
    assert demand.most_rows(16, False, 0.0) == 0


HOLES = """
import sys
import psutil, torch
from tasks.shared.freed_memory import return_memory_at_once
if sys.argv[1] == "at once":
    return_memory_at_once()
torch.set_num_threads(1)
large = torch.ones(5 * 2**20)
del large  # 20 MiB: glibc keeps pieces of this size from now on
before = psutil.Process().memory_info().rss
pieces = [torch.ones(2**20) for _ in range(64)]
del pieces[::2]
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux" or "glibc" not in platform.libc_ver(), reason="glibc's allocator")
def test_memory_is_returned_from_between_what_is_kept() -> None:
    """64 pieces of 4 MiB, every second one freed."""

    def held(how: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", HOLES, how], cwd=PROJECT, capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    assert held("at once") < 140 and held("as ever") > 200


@pytest.mark.parametrize("recompute", [False, True])
def test_who_recomputes_on_a_cpu_returns_memory(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recompute: bool
) -> None:
    told = []
    monkeypatch.setattr(loop, "return_memory_at_once", lambda: told.append("returned"))
    train(model, empty_run(tmp_path), Answers(), epochs=1, gradient_checkpointing=recompute)
    assert told == (["returned"] if recompute else [])
