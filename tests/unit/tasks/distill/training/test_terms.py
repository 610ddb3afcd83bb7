"""The say of each term: measured where the term is, told when there is none, the same after a kill."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tasks.distill.sft import SFT
from tasks.distill.training import checkpoints
from tasks.distill.training.loop import train_model
from tasks.distill.training.terms import gradient_norms, negligible_terms
from tasks.shared.technique import Metrics, StepRun
from tests.tiny_llama import build_model, chats, empty_run, save_tiny, with_compute
from tests.two_terms import TwoTerms

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 5
"""Of an epoch: 20 conversations by 4."""


class Scarce(TwoTerms):
    """The second term is in some steps' batches only."""

    def __init__(self, steps: Callable[[int], bool], scale: float = 1.0) -> None:
        super().__init__()
        self.steps, self.scale = steps, scale

    def terms(self, model: Any, batch: Any, count: "Tensor | int | None") -> "dict[str, Tensor]":
        found = super().terms(model, batch, count)
        return found | {"size": found["size"] * (self.scale if self.steps(self.step) else 0.0)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "model", build_model(num_hidden_layers=1))


def train(model: Path, place: tuple[Path, StepRun], objective: TwoTerms) -> Metrics:
    settings = SFT(epochs=2, batch_size=4, learning_rate=3e-3, precision="float32", validation=0.0)
    return train_model(settings, model, chats(20), objective, *place)


def measured(out: Path, name: str) -> list[float]:
    """A term's gradients, as the curve has them."""
    with (out / "loss.csv").open() as stream:
        return [float(line[f"{name}_gradient"]) for line in csv.DictReader(stream) if line.get(f"{name}_gradient")]


def test_a_gradient_is_that_of_its_term_alone() -> None:
    import torch

    first, second = torch.nn.Parameter(torch.tensor([1.0, 2.0])), torch.nn.Parameter(torch.tensor([3.0]))
    frozen = torch.nn.Parameter(torch.tensor([1.0]), requires_grad=False)
    terms = {"sum": (3 * first).sum() + 4 * second.sum(), "one": first[0] * frozen.sum(), "none": frozen.sum()}
    found = gradient_norms(terms, [first, second, frozen])
    assert found == pytest.approx({"sum_gradient": (9 + 9 + 16) ** 0.5, "one_gradient": 1.0, "none_gradient": 0.0})
    assert first.grad is None
    sum(terms.values()).backward()


def test_what_counts_as_no_say() -> None:
    def history(*pairs: tuple[float | None, float | None]) -> list[dict[str, float]]:
        named = ({"a_gradient": first, "b_gradient": second} for first, second in pairs)
        return [{name: value for name, value in entry.items() if value is not None} for entry in named]

    assert negligible_terms(history((1, 0.01), (1, 0.01)), "ab") == {"b": 0.01}
    assert not negligible_terms(history((1, 0.01), (1, 0.03), (1, 0.03)), "ab"), "the median counts"
    assert not negligible_terms(history((1, None), (None, 0.5)), "ab"), "each where it was"
    assert negligible_terms(history((1, None)), "ab") == {"b": 0.0}, "it never was"
    assert not negligible_terms([], "ab") and not negligible_terms(history((0, 0)), "ab"), (
        "nothing was measured, nothing moves"
    )


def test_a_term_that_the_first_batch_lacks_is_measured_where_it_is(model: Path, tmp_path: Path) -> None:
    late, always = empty_run(tmp_path, "late"), empty_run(tmp_path, "always")
    assert "negligible_terms" not in train(model, late, Scarce(lambda step: step % STEPS == 3))
    assert "negligible_terms" not in train(model, always, Scarce(lambda _: True))
    assert len(measured(late[0], "size")) == len(measured(late[0], "hard")) == 2, "once an epoch"
    assert measured(late[0], "hard")[0] == measured(always[0], "hard")[0], "its own time is still the first pass"


def test_a_term_without_say_is_named(model: Path, tmp_path: Path) -> None:
    assert train(model, empty_run(tmp_path, "never"), Scarce(lambda _: False))["negligible_terms"] == "size"
    place = empty_run(tmp_path, "weak")
    assert train(model, place, Scarce(lambda step: step % STEPS == 3, 1e-6))["negligible_terms"] == "size"
    assert all(0 < value < 1e-3 for value in measured(place[0], "size")), "measured, and too small"


def test_what_a_killed_epoch_still_waits_for_is_measured_afterwards(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, (out, run) = empty_run(tmp_path, "whole"), empty_run(tmp_path, "cut")
    objective = Scarce(lambda step: step % STEPS == 3)
    train(model, whole, objective)
    genuine = checkpoints._mark

    def mark(folder: Path, trainer: Any) -> None:
        genuine(folder, trainer)
        if trainer.state.global_step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "_mark", mark)
        train(model, (out, with_compute(run, checkpoint_s=0.0)), objective)
    train(model, (out, run), objective)
    assert (out / "loss.csv").read_text() == (whole[0] / "loss.csv").read_text()
    assert len(measured(out, "size")) == 2
