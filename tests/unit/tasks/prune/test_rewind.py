"""Rewinding: early weights with the masks that were found after the training, and what does not fit is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.planning.plan import build_plan
from tasks.distill.sft import SFT
from tasks.distill.training.early import put_back
from tasks.distill.training.loop import train_model
from tasks.prune.magnitude import Magnitude
from tasks.prune.rewind import Rewind
from tasks.shared.errors import ConfigError, ErrorList, ModelError, TechniqueError
from tasks.shared.model.early import EARLY_FOLDER
from tasks.shared.model.loading import load_model
from tasks.shared.model.masks import read_masks, write_masks
from tasks.shared.technique import Artifact, Inputs, Kind
from tests.settings_case import Case
from tests.tiny_llama import build_model, chats, empty_run, inputs_of, save_tiny
from tests.two_terms import TwoTerms
from tests.unit.tasks.distill.training.test_masks import NAMES, masked_model
from tests.unit.tasks.distill.training.test_processes import SETTINGS


def trained(folder: Path, **settings: Any) -> Path:
    out, run = empty_run(folder, "trained")
    train_model(SFT(**SETTINGS | settings), save_tiny(folder / "model"), chats(12), TwoTerms(), out, run)
    return out


def inputs(model: Path, early: Path) -> Inputs:
    return Inputs({"model": (Artifact("ticket", Kind.MODEL, model),), "early": (Artifact("tuned", Kind.MODEL, early),)})


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("tuned"), early_step=1)


def test_early_weights_are_those_of_that_step_and_change_nothing_else(tuned: Path, tmp_path: Path) -> None:
    """After one step of a schedule of several: between the source and the end, and not what a shorter training ends with."""
    source, early, end = (load_model(folder) for folder in (tuned.parent / "model", tuned / EARLY_FOLDER, tuned))
    name = "model.layers.0.mlp.up_proj.weight"
    first, last = ((other.get_parameter(name) - source.get_parameter(name)).norm() for other in (early, end))
    assert 0 < first < last
    plain = load_model(trained(tmp_path))
    assert all(torch.equal(weight, plain.get_parameter(key)) for key, weight in end.named_parameters())


def test_the_ticket_has_early_weights_and_late_masks(tuned: Path, tmp_path: Path) -> None:
    ticket, run = empty_run(tmp_path, "ticket")
    Magnitude(sparsity=0.5)(inputs_of(tuned), ticket, run)
    out, run = empty_run(tmp_path, "rewound")
    metrics = Rewind()(inputs(ticket, tuned), out, run)
    pruned, early, found = (load_model(folder) for folder in (ticket, tuned / EARLY_FOLDER, out))
    assert read_masks(out) == read_masks(ticket) and metrics["masked_sparsity"] == 0.5
    for name, weight in found.named_parameters():
        kept = pruned.get_parameter(name) != 0 if name in read_masks(out).tensors else torch.ones_like(weight).bool()
        assert torch.equal(weight, early.get_parameter(name) * kept)
    again, run = empty_run(tmp_path, "again")
    train_model(SFT(**SETTINGS), out, chats(12), TwoTerms(), again, run)
    assert read_masks(again) == read_masks(ticket), "the zeros hold in the training that follows"


def test_what_does_not_fit_is_refused(tuned: Path, tmp_path: Path) -> None:
    ticket = save_tiny(tmp_path / "ticket", masked_model())
    out, run = empty_run(tmp_path)
    with pytest.raises(TechniqueError, match="without masks"):
        Rewind()(inputs(ticket, tuned), out, run)
    write_masks(ticket, NAMES)
    with pytest.raises(TechniqueError, match=r"without early weights.*\n.*\n  fix: steps.tuned.early_step=20"):
        Rewind()(inputs(ticket, tmp_path / "ticket"), out, run)
    other = save_tiny(tmp_path / "other" / EARLY_FOLDER, build_model(num_hidden_layers=1)).parent
    with pytest.raises(ModelError, match="missing or have another shape, such as model.layers.1"):
        Rewind()(inputs(ticket, other), out, run)
    with pytest.raises(TechniqueError, match=r"900, and the training has \d optimizer steps"):
        trained(tmp_path, early_step=900)
    with pytest.raises(ConfigError, match="adapters of rank 4"):
        SFT(**SETTINGS | {"lora": {"rank": 4}, "early_step": 1})
    assert not list(out.iterdir())


def test_a_training_that_stopped_before_the_early_step_says_so(tmp_path: Path) -> None:
    with pytest.raises(TechniqueError, match=r"did not reach.*\n.*\n  fix: steps.tuned.patience=0"):
        put_back(build_model(), tmp_path, "tuned")


def test_the_plan_knows_that_no_early_weights_are_kept(tmp_path: Path) -> None:
    step = {"_target_": "tasks.prune.rewind.Rewind", "inputs": {"model": "ticket", "early": "tuned"}}
    tuned = {"_target_": "tasks.distill.sft.SFT", "inputs": {"model": "models.base", "data": "corpus"}}
    config: dict[str, Any] = {
        "name": "trial",
        "seed": 0,
        "models": {"base": {"path": str(save_tiny(tmp_path / "model"))}},
        "steps": {
            "corpus": {"_target_": "tasks.curate.support.Support"},
            "tuned": tuned,
            "ticket": {"_target_": "tasks.prune.magnitude.Magnitude", "inputs": {"model": "tuned"}},
            "rewound": step,
        },
    }
    with pytest.raises(ErrorList, match=r"steps.rewound.inputs.early: tuned, which keeps no early weights") as caught:
        build_plan(config)
    assert "steps.tuned.early_step=20" in str(caught.value)
    tuned["early_step"] = 3  # type: ignore[assignment]
    build_plan(config)


CHANGES: dict[str, Any] = {}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    ticket = save_tiny(folder / "ticket", masked_model())
    write_masks(ticket, NAMES)
    early = save_tiny(folder / "tuned" / EARLY_FOLDER, build_model(num_hidden_layers=2)).parent
    yield Case(folder, inputs(ticket, early), {})
