"""Masked weights in training: no gradient, no step and no adapter brings them back."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.distill.sft import SFT
from tasks.distill.training.loop import train_model
from tasks.distill.training.lora import Lora, adapt, merge
from tasks.distill.training.masks import HeldZeros, mask_adapters, merged, plain_name
from tasks.shared.errors import ModelError, TechniqueError
from tasks.shared.model.loading import load_model
from tasks.shared.model.masks import MASKS_FILE, read_masks, write_masks
from tests.sharding import shard_on_cpus
from tests.tiny_llama import build_model, chats, empty_run, save_tiny, with_compute
from tests.two_terms import TwoTerms
from tests.unit.tasks.distill.training.test_processes import SETTINGS

NAMES = [
    f"model.layers.{layer}.{part}.weight"
    for layer in (0, 1)
    for part in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
]


def masked_model() -> Any:
    model = build_model(num_hidden_layers=2)
    with torch.no_grad():
        for name in NAMES:
            weight = model.get_parameter(name)
            weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5] = 0.0
    return model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = save_tiny(tmp_path / "model", masked_model())
    write_masks(folder, NAMES)
    return folder


def check_held(source: Path, out: Path) -> None:
    """The masks are those of the source, and the weights around them were trained."""
    assert read_masks(out) == read_masks(source)
    before, after = load_model(source), load_model(out)
    for name in NAMES:
        assert not torch.equal(after.get_parameter(name), before.get_parameter(name).bfloat16().float())


@pytest.mark.parametrize("settings", [{}, {"lora": {"rank": 4}, "precision": "bfloat16"}], ids=["whole", "LoRA"])
def test_a_trained_model_has_the_masks_of_its_source(source: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    out, run = empty_run(tmp_path)
    train_model(SFT(**SETTINGS | settings), source, chats(12), TwoTerms(), out, run)
    check_held(source, out)


def test_masked_weights_stay_zero_on_a_grid_that_has_a_zero(source: Path, tmp_path: Path) -> None:
    """Rounding may add zeros, which are then masked as well."""
    out, run = empty_run(tmp_path)
    train_model(SFT(**SETTINGS | {"qat": {"grid": "q4_0"}}), source, chats(12), TwoTerms(), out, run)
    before, after, masks = load_model(source), load_model(out), read_masks(out)
    assert masks is not None
    for name in NAMES:
        zeros = before.get_parameter(name) == 0
        assert bool((after.get_parameter(name)[zeros] == 0).all()) and masks.tensors[name].zeros >= int(zeros.sum())
    for grid in ("iq4_nl", "tq2_0"):  # whose blocks do not fill these rows: they would be iq4_nl
        with pytest.raises(TechniqueError, match="iq4_nl, which has no zero.*\n.*\n  fix: qat.grid=q4_0"):
            train_model(SFT(**SETTINGS | {"qat": {"grid": grid}}), source, chats(12), TwoTerms(), out, run)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"lora": {"rank": 4}}], ids=["whole", "LoRA"])
def test_masks_hold_where_processes_share_the_weights(
    source: Path, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_on_cpus(monkeypatch)
    out, run = empty_run(tmp_path)
    spread = with_compute(run, processes=2, sharding="fsdp")
    train_model(SFT(**SETTINGS | settings), source, chats(12), TwoTerms("want half"), out, spread)
    check_held(source, out)


class Clipping:
    """What the trainer's clipping sees."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def _clip_grad_norm(self, model: Any) -> float:
        return float(torch.stack([weight.grad.norm() for weight in model.parameters()]).norm())


class Held(HeldZeros, Clipping):
    masked = tuple(NAMES)


def test_gradients_of_masked_weights_are_not_clipped_with_the_others() -> None:
    """So Adam's moments stay zero there too, and weight decay has nothing to decay."""
    model = masked_model()
    zeros = {name: model.get_parameter(name) == 0 for name in NAMES}
    trainer = Held(model)
    trainer.find_zeros()
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    kept = sum(weight.numel() for weight in model.parameters()) - sum(int(places.sum()) for places in zeros.values())
    assert trainer._clip_grad_norm(model) == pytest.approx(kept**0.5, rel=1e-5)
    for name, places in zeros.items():
        gradient = model.get_parameter(name).grad
        assert not gradient[places].any() and gradient[~places].all()


def test_adapters_train_the_function_that_is_saved() -> None:
    """The logits before the merge are those after it, in which the masked weights are zero."""
    model, ids = masked_model(), torch.arange(3, 30)[None]
    zeros = {name: model.get_parameter(name) == 0 for name in NAMES}
    with torch.no_grad():
        before = model(ids).logits
    adapted = adapt(model, Lora(rank=4))
    mask_adapters(adapted, NAMES)
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, before)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
        trained = adapted(ids).logits
        whole = merged(adapted, NAMES, merge)
        torch.testing.assert_close(whole(ids).logits, trained, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(trained, before, atol=1e-2)
    assert not any(whole.get_parameter(name)[places].any() for name, places in zeros.items())


def test_adapters_with_dropout_are_refused() -> None:
    adapted = adapt(masked_model(), Lora(rank=4, dropout=0.1))
    with pytest.raises(TechniqueError, match=r"lora\.dropout: dropout in the adapters of a model with masks"):
        mask_adapters(adapted, NAMES)


def test_masks_of_a_model_that_was_changed_since_are_refused(source: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", build_model(num_hidden_layers=2))
    (other / MASKS_FILE).write_bytes((source / MASKS_FILE).read_bytes())
    out, run = empty_run(tmp_path)
    with pytest.raises(ModelError, match="masks of another state of the model: 6 of 6 matrices"):
        train_model(SFT(**SETTINGS), other, chats(12), TwoTerms(), out, run)


def test_names_are_those_of_the_folder_whatever_wraps_the_model() -> None:
    wrapped = "base_model.model.model.layers.0._orig_mod.mlp.up_proj.base_layer.weight"
    assert plain_name(wrapped) == "model.layers.0.mlp.up_proj.weight"
