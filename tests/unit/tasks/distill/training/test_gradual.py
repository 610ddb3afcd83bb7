"""Masks that grow during the training: as many zeros as asked, held, and no epoch before them is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.distill.sft import SFT
from tasks.distill.training.gradual import Gradual, GrowingZeros, grown_names
from tasks.distill.training.loop import train_model
from tasks.shared.errors import ConfigError, TechniqueError
from tasks.shared.model.loading import load_model
from tasks.shared.model.masks import read_masks
from tasks.shared.model.prunable import matrices_of
from tests.tiny_llama import build_model, chats, empty_run, save_tiny, with_compute
from tests.two_terms import TwoTerms
from tests.unit.tasks.distill.training.test_masks import NAMES, masked_model
from tests.unit.tasks.distill.training.test_processes import SETTINGS

HALF = {"gradual": {"sparsity": 0.5, "every": 1}}


def train(source: Path, tmp_path: Path, **settings: Any) -> tuple[Path, dict[str, Any]]:
    out, run = empty_run(tmp_path, "trained")
    return out, train_model(SFT(**SETTINGS | HALF | settings), source, chats(12), TwoTerms(), out, run)


def test_sparsity_rises_with_the_cube_of_the_time_left() -> None:
    gradual = Gradual(sparsity=0.8, begin=0.1, end=0.6, every=5)
    found = {step: gradual.sparsity_at(step, 100) for step in range(1, 101)}
    grows = {step: value for step, value in found.items() if value is not None}
    assert min(grows) == 10 and not [step for step in grows if step < 60 and step % 5]
    assert grows[10] == 0.0 and grows[60] == 0.8
    assert grows[35] == pytest.approx(0.8 * (1 - 0.5**3))
    assert list(grows.values()) == sorted(grows.values())
    assert all(gradual.sparsity_at(step, 7) in (None, 0.8) for step in (5, 6, 7)), "few steps: at the end at the latest"
    assert Gradual().sparsity_at(50, 100) is None
    with pytest.raises(ValueError, match="must be smaller than end"):
        Gradual(begin=0.7, end=0.7)


def test_each_matrix_ends_with_its_share_of_zeros(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "model")
    out, figures = train(source, tmp_path)
    masks = read_masks(out)
    model = load_model(out)
    assert masks is not None and set(masks.tensors) == {f"{name}.weight" for name in matrices_of(model)}
    for name, mask in masks.tensors.items():
        assert mask.zeros == round(0.5 * model.get_parameter(name).numel())
    assert figures["masked_sparsity"] == 0.5
    before = load_model(source)
    name = "model.layers.0.mlp.down_proj.weight"
    small = before.get_parameter(name).abs().flatten().argsort()[:20]
    assert float((model.get_parameter(name).flatten()[small] == 0).float().mean()) > 0.9, "the smallest went"


def test_frozen_matrices_stay_dense_and_masks_of_the_source_grow(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "model", masked_model())
    from tasks.shared.model.masks import write_masks

    write_masks(source, NAMES)
    out, _ = train(source, tmp_path, frozen_layers=1, gradual={"sparsity": 0.75, "every": 1})
    before, after, masks = load_model(source), load_model(out), read_masks(out)
    assert masks is not None
    for name in matrices_of(after):
        weight = f"{name}.weight"
        grown = name.startswith("model.layers.1.")
        assert (weight in masks.tensors) == (grown or weight in NAMES)
        if grown:
            assert masks.tensors[weight].zeros == round(0.75 * after.get_parameter(weight).numel())
        assert bool((after.get_parameter(weight)[before.get_parameter(weight) == 0] == 0).all())


def test_an_epoch_before_the_masks_are_complete_is_not_the_best(tmp_path: Path) -> None:
    """A rate that makes every epoch worse: without masks the first one would be kept."""
    source = save_tiny(tmp_path / "model")
    settings = {
        "epochs": 6,
        "learning_rate": 0.05,
        "validation": 0.4,
        "patience": 1,
        "gradual": {"sparsity": 0.5, "every": 1, "end": 0.6},
    }
    out, figures = train(source, tmp_path, **settings)
    masks = read_masks(out)
    assert masks is not None and masks.sparsity == 0.5 and figures["epochs"] >= 4


class Judge:
    """In place of TRL's trainer: every epoch is the best one."""

    def _determine_best_metric(self, metrics: Any, trial: Any) -> bool:
        return True


@pytest.mark.parametrize(("step", "best"), [(4, False), (6, True)])
def test_epochs_count_from_the_end_of_the_growth(step: int, best: bool) -> None:
    class Trainer(GrowingZeros, Judge):
        gradual = Gradual(sparsity=0.5, end=0.6)
        state = type("State", (), {"global_step": step, "max_steps": 10})

    assert Trainer()._determine_best_metric({}, None) is best


def test_what_cannot_be_pruned_while_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapters of rank 4.*\n.*\n  fix: lora.rank: 0"):
        SFT(**SETTINGS | HALF | {"lora": {"rank": 4}})
    with pytest.raises(TechniqueError, match="iq4_nl, which has no zero"):
        train(save_tiny(tmp_path / "model"), tmp_path, qat={"grid": "iq4_nl"})
    out, run = empty_run(tmp_path, "spread")
    spread = with_compute(run, processes=2, sharding="fsdp", device="cuda")
    with pytest.raises(TechniqueError, match="no process has a whole matrix"):
        train_model(SFT(**SETTINGS | HALF), tmp_path / "model", chats(12), TwoTerms(), out, spread)
    refusal = SFT(**SETTINGS | HALF).refuses({"model_type": "mixtral", "num_local_experts": 4})
    assert refusal is not None and "experts" in refusal.reason
    assert grown_names(build_model(), Gradual()) == frozenset()


def test_zeros_stay_on_a_grid(tmp_path: Path) -> None:
    out, _ = train(save_tiny(tmp_path / "model"), tmp_path, qat={"grid": "q4_0"})
    masks = read_masks(out)
    assert masks is not None and masks.sparsity >= 0.5
    weight = load_model(out).get_parameter("model.layers.0.self_attn.q_proj.weight")
    assert bool(torch.isfinite(weight).all())
