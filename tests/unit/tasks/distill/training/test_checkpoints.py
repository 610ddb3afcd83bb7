"""A training killed at its worst moments ends in the bytes of an undisturbed one; what is left of a checkpoint is told apart."""

import errno
import json
import signal
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.distill.sft import SFT
from tasks.distill.training import checkpoints, loop
from tasks.distill.training.checkpoints import MARK, STATE, last_checkpoint
from tasks.shared.errors import MachineError
from tasks.shared.formats.rows import Message, write_rows
from tasks.shared.store.keys import Digests
from tasks.shared.technique import Artifact, Inputs, Kind
from tasks.shared.text.answer_format import join_answer
from tests.forked import TRAINING, ForkedCode
from tests.support_rows import support_row
from tests.tiny_llama import build_model, empty_run, save_tiny, sentences, with_compute

SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "learning_rate": 1e-3,
    "batch_size": 2,
    "accumulation": 2,
    "precision": "float32",
}
"""38 rows to train on: 10 steps an epoch, the last of them with fewer batches; a log line every second step."""
CHILD = """
import json, os, signal, sys
from pathlib import Path
from tasks.distill import sft
from tasks.distill.training import checkpoints, loop
from tasks.shared.technique import Artifact, Compute, Inputs, Kind, StepRun
job = json.loads(sys.argv[1])
genuine, begun = checkpoints._mark, []
def mark(folder, trainer):
    begun.append(folder)
    if trainer.state.global_step >= job["write"]:
        os.kill(os.getpid(), signal.SIGKILL)
    genuine(folder, trainer)
checkpoints._mark = mark
watcher = loop.watcher
def killing(step):
    callback = watcher(step)
    follow = callback.on_step_end
    def on_step_end(args, state, control, **more):
        follow(args, state, control, **more)
        if state.global_step == job["step"]:
            os.kill(os.getpid(), signal.SIGKILL)
    callback.on_step_end = on_step_end
    return callback
loop.watcher = killing
ports = {"model": (Artifact("m", Kind.MODEL, Path(job["model"])),), "data": (Artifact("d", Kind.TRACES, Path(job["data"])),)}
run = StepRun("step", 0, Path(job["scratch"]), compute=Compute(threads=1, checkpoint_s=0))
sft.SFT(**job["settings"])(Inputs(ports), Path(job["out"]), run)
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "traces").mkdir()
    asks, answers = sentences(42, seed=5), sentences(42, seed=6)
    rows = [
        support_row(
            id=f"r{index}", kind="faq", intent="returns", group=f"g{index // 4}", accept=(("45 days",),),
            messages=(Message(role="user", content=ask), Message(role="assistant", content=join_answer("returns", answer))),
        )
        for index, (ask, answer) in enumerate(zip(asks, answers, strict=True))
    ]  # fmt: skip
    write_rows(folder / "traces" / "train.jsonl", rows)
    model = save_tiny(folder / "model", build_model(attention_dropout=0.2))  # so that the generators' states matter
    return Inputs(
        {
            "model": (Artifact("teacher", Kind.MODEL, model),),
            "data": (Artifact("traces", Kind.TRACES, folder / "traces"),),
        }
    )


def digest(out: Path) -> str:
    return Digests(out.parent / "none").tree(out)


def whole(inputs: Inputs, folder: Path, **settings: Any) -> tuple[str, list[str]]:
    """The digest and the curve of an undisturbed run."""
    out, run = empty_run(folder, "whole")
    SFT(**SETTINGS | settings)(inputs, out, run)
    return digest(out), (out / "loss.csv").read_text().splitlines()


def killed(inputs: Inputs, out: Path, scratch: Path, step: int = -1, write: int = 10**9, **settings: Any) -> None:
    """A process of its own that checkpoints at every step and is killed (9) at one, or while it writes a checkpoint."""
    job = {
        "model": str(inputs.one("model").path),
        "data": str(inputs.one("data").path),
        "out": str(out),
        "scratch": str(scratch),
        "settings": SETTINGS | settings,
        "step": step,
        "write": write,
    }
    child = ForkedCode(CHILD, json.dumps(job), libraries=TRAINING)
    _, complaint = child.communicate()
    assert child.returncode == -signal.SIGKILL, complaint


def test_killed_within_an_epoch_and_while_writing_it_ends_the_same(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, curve = whole(inputs, tmp_path)
    out, run = empty_run(tmp_path, "cut")
    killed(inputs, out, run.scratch, step=14)
    point = last_checkpoint(run.scratch / "checkpoints")
    assert point is not None and point.name == "checkpoint-13", "the middle of the second epoch, between two log lines"
    killed(inputs, out, run.scratch, write=17)
    assert (run.scratch / "checkpoints" / "checkpoint-17" / STATE).is_file(), "half a checkpoint"
    SFT(**SETTINGS)(inputs, out, run)
    assert (out / "loss.csv").read_text().splitlines() == curve
    assert digest(out) == expected
    assert len([line for line in curve if line.endswith(",")]) == 15 and len(curve) == 19

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it trains again")

    import transformers

    monkeypatch.setattr(transformers.Trainer, "train", refuse)  # killed before the artifact was in its place
    SFT(**SETTINGS)(inputs, again := empty_run(tmp_path, "again")[0], run)
    assert digest(again) == expected


class Stop(Exception):
    pass


def interrupted(
    technique: SFT, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: Callable[[Any], bool]
) -> tuple[Path, Any]:
    """The same in this process: stopped after the first checkpoint for which `when(trainer)` holds."""
    out, run = empty_run(tmp_path, "cut")
    genuine = checkpoints._mark

    def mark(folder: Path, trainer: Any) -> None:
        genuine(folder, trainer)
        if when(trainer):
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(checkpoints, "_mark", mark)
        technique(inputs, out, with_compute(run, checkpoint_s=0.0))
    return out, run


@pytest.fixture
def best_is_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation losses of which the second is the least, whatever the weights: early stopping then is no matter of luck."""

    def trainer() -> type[Any]:
        class Fixed(genuine()):  # type: ignore[misc]
            def evaluation_loop(self, *more: Any, **named: Any) -> Any:
                output = super().evaluation_loop(*more, **named)
                output.metrics["eval_loss"] = abs(self.state.epoch - 2) + 1
                return output

        return Fixed

    genuine = loop.objective_trainer
    monkeypatch.setattr(loop, "objective_trainer", trainer)


@pytest.mark.usefixtures("best_is_second")
def test_killed_after_it_stopped_early_it_does_not_train_on(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"epochs": 5, "patience": 1}
    expected, curve = whole(inputs, tmp_path, **settings)
    assert len(curve) == 1 + 3 * 6
    out, run = interrupted(
        SFT(**SETTINGS | settings), inputs, tmp_path, monkeypatch, lambda trainer: trainer.control.should_training_stop
    )
    SFT(**SETTINGS | settings)(inputs, out, run)
    assert digest(out) == expected and (out / "loss.csv").read_text().splitlines() == curve


@pytest.mark.usefixtures("best_is_second")
def test_early_stopping_remembers_how_long_it_has_waited(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"epochs": 6, "patience": 2}
    expected, curve = whole(inputs, tmp_path, **settings)
    assert len(curve) == 1 + 4 * 6
    out, run = interrupted(
        SFT(**SETTINGS | settings), inputs, tmp_path, monkeypatch, lambda trainer: trainer.state.global_step == 36
    )
    SFT(**SETTINGS | settings)(inputs, out, run)
    assert (out / "loss.csv").read_text().splitlines() == curve and digest(out) == expected


def test_masks_that_grow_go_on_growing(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more: dict[str, Any] = {"gradual": {"sparsity": 0.6, "begin": 0.2, "end": 0.8, "every": 3}, "epochs": 1}
    expected, _ = whole(inputs, tmp_path, **more)
    technique = SFT(**SETTINGS | more)
    out, run = interrupted(technique, inputs, tmp_path, monkeypatch, lambda trainer: trainer.state.global_step == 5)
    technique(inputs, out, run)
    assert digest(out) == expected


@pytest.mark.parametrize(("epochs", "step"), [(1.5, 15), (1.5, 12), (1, 10)])
def test_the_end_may_lie_within_an_epoch(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: float, step: int
) -> None:
    expected, curve = whole(inputs, tmp_path, epochs=epochs, validation=0.0)
    technique = SFT(**SETTINGS | {"epochs": epochs, "validation": 0.0})
    out, run = interrupted(technique, inputs, tmp_path, monkeypatch, lambda trainer: trainer.state.global_step == step)
    technique(inputs, out, run)
    assert (out / "loss.csv").read_text().splitlines() == curve and digest(out) == expected


def test_scratch_may_have_moved(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = whole(inputs, tmp_path)
    out, run = interrupted(
        SFT(**SETTINGS), inputs, tmp_path, monkeypatch, lambda trainer: trainer.state.global_step == 25
    )
    moved = run.scratch.rename(tmp_path / "moved")
    SFT(**SETTINGS)(inputs, out, replace(run, scratch=moved))
    assert digest(out) == expected


def test_checkpoints_hold_the_last_and_the_best_only(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = interrupted(
        SFT(**SETTINGS), inputs, tmp_path, monkeypatch, lambda trainer: trainer.state.global_step == 15
    )
    found = {path.name for path in (run.scratch / "checkpoints").glob("checkpoint-*")}
    assert found == {"checkpoint-10", "checkpoint-14", "checkpoint-15"}, "14 goes once 15 is whole"


def make_checkpoint(folder: Path, step: int, best: int | None = None) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / STATE).write_text(json.dumps({"best_global_step": best}))
    with zipfile.ZipFile(path / "optimizer.pt", "w") as archive:
        archive.writestr("data", b"moments" * 100)
    sizes = {file.name: file.stat().st_size for file in path.iterdir()}
    (path / MARK).write_text(json.dumps({"files": sizes, "ended": False, "identity": {"seed": "0"}}))
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / MARK).unlink(),
        lambda path: (path / MARK).write_text("{cut"),
        lambda path: (path / MARK).write_text("[]"),
        lambda path: cut(path / STATE),
        lambda path: cut(path / "optimizer.pt"),
        lambda path: flip(path / "optimizer.pt"),
        lambda path: (path / "optimizer.pt").unlink(),
    ],
)
def test_a_checkpoint_that_cannot_be_read_gives_way_to_the_one_before(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    make_checkpoint(tmp_path, 5)
    last = make_checkpoint(tmp_path, 10)
    assert last_checkpoint(tmp_path) == last
    damage(last)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert not last.exists() and "checkpoint-10 is not used" in caplog.text


def test_a_checkpoint_without_its_best_epoch_is_of_no_use(tmp_path: Path) -> None:
    best, last = make_checkpoint(tmp_path, 9, best=9), make_checkpoint(tmp_path, 10, best=9)
    assert last_checkpoint(tmp_path) == last
    cut(best / "optimizer.pt")
    assert last_checkpoint(tmp_path) is None


def test_garbage_does_not_stop_a_run(inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.write_text("a file where a folder belongs")
    assert last_checkpoint(folder) is None
    (folder / "checkpoint-final").mkdir(parents=True)
    (folder / "checkpoint-7").write_text("no folder")
    make_checkpoint(folder, 3)
    assert last_checkpoint(folder) == folder / "checkpoint-3"
    assert [path.name for path in folder.iterdir()] == ["checkpoint-3"]


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos"),
    ],
)
def test_a_full_disk_is_one_message_and_the_last_checkpoint_survives(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    import torch

    out, run = empty_run(tmp_path)
    genuine = torch.save

    def save(content: Any, file: Any, *more: Any, **named: Any) -> None:
        if "checkpoint-14/optimizer.pt" in str(file):
            raise failure
        genuine(content, file, *more, **named)

    with monkeypatch.context() as patch, pytest.raises(MachineError, match="MiB free") as caught:
        patch.setattr(torch, "save", save)
        SFT(**SETTINGS)(inputs, out, with_compute(run, checkpoint_s=0.0))
    assert "runtime.root" in str(caught.value)
    point = last_checkpoint(run.scratch / "checkpoints")
    assert point is not None and point.name == "checkpoint-13"
    assert not (run.scratch / "checkpoints" / "checkpoint-14").exists(), "its room is given back"
