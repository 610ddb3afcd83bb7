"""Shared layers in training: the step of weights that are one tensor, and copies at the end."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.distill.sft import SFT
from tasks.distill.training.loop import train_model
from tasks.distill.training.shared_layers import HeldCopies, check_frozen
from tasks.prune.selection.sharing import share_layers
from tasks.shared.errors import TechniqueError
from tasks.shared.model.layout import decoder_layers
from tasks.shared.model.loading import load_model
from tasks.shared.model.shared_layers import SHARED_FILE, SharedLayers, read_shared, write_shared
from tests.sharding import shard_on_cpus
from tests.tiny_llama import build_model, chats, empty_run, save_tiny, with_compute
from tests.two_terms import TwoTerms
from tests.unit.tasks.distill.training.test_processes import SETTINGS

SHARED = SharedLayers(layers="model.layers", groups=((0, 1),))


def shared_model(**more: Any) -> Any:
    model = build_model(**{"num_hidden_layers": 2} | more)
    share_layers(list(decoder_layers(model)), SHARED.groups, "copy_first")
    return model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = save_tiny(tmp_path / "model", shared_model())
    write_shared(folder, SHARED)
    return folder


def check_copies(source: Path, out: Path) -> None:
    """The record is carried, which means that the layers are equal, and they were trained."""
    assert read_shared(out) == read_shared(source) == SHARED
    before, after = load_model(source), load_model(out)
    name = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(after.get_parameter(name), before.get_parameter(name).bfloat16().float())


@pytest.mark.parametrize(
    "settings",
    [{}, {"lora": {"rank": 4}}, {"qat": {"grid": "int4_symmetric", "scales": "learned"}}],
    ids=["whole", "LoRA", "learned scales"],
)
def test_layers_stay_copies_through_training(source: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    out, run = empty_run(tmp_path)
    metrics = train_model(SFT(**SETTINGS | settings), source, chats(12), TwoTerms(), out, run)
    check_copies(source, out)
    assert metrics["shared_layers"] == 2


def test_without_the_record_training_pulls_the_layers_apart(source: Path, tmp_path: Path) -> None:
    """So that the tests above cannot pass by themselves."""
    (source / SHARED_FILE).unlink()
    out, run = empty_run(tmp_path)
    train_model(SFT(**SETTINGS), source, chats(12), TwoTerms(), out, run)
    first, second = decoder_layers(load_model(out))
    assert not torch.equal(first.mlp.up_proj.weight, second.mlp.up_proj.weight)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"lora": {"rank": 4}}], ids=["whole", "LoRA"])
def test_layers_stay_copies_where_processes_share_the_weights(
    source: Path, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_on_cpus(monkeypatch)
    out, run = empty_run(tmp_path)
    spread = with_compute(run, processes=2, sharding="fsdp")
    train_model(SFT(**SETTINGS | settings), source, chats(12), TwoTerms("want half"), out, spread)
    check_copies(source, out)


class Clipping:
    """Clipping as the trainer does it."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def _clip_grad_norm(self, model: Any) -> float:
        return float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))


class Held(HeldCopies, Clipping):
    shared = SHARED


def loss_of(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 40)[None]
    found: torch.Tensor = model(ids, labels=ids).loss
    return found


def test_a_step_is_that_of_layers_that_are_one_tensor() -> None:
    """Norm of the clipping, and Adam's steps with weight decay, against a model whose second layer is its first one."""
    copies, tied = shared_model(), shared_model()
    for name, weight in list(tied.model.layers[0].named_parameters()):
        part, _, last = name.rpartition(".")
        setattr(tied.model.layers[1].get_submodule(part), last, weight)
    assert sum(1 for _ in tied.parameters()) < sum(1 for _ in copies.parameters())
    held, plain = Held(copies), Clipping(tied)
    held.find_copies()
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-3, eps=1e-12) for each in (copies, tied)]
    for _ in range(3):
        norms = []
        for model, trainer, optimizer in zip((copies, tied), (held, plain), optimizers, strict=True):
            loss_of(model).backward()
            norms.append(trainer._clip_grad_norm(model))
            optimizer.step()
            optimizer.zero_grad()
        held.copy_first()
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    for name, weight in tied.named_parameters(remove_duplicate=False):
        torch.testing.assert_close(copies.get_parameter(name), weight, rtol=1e-3, atol=2e-5)


def test_a_loss_that_ends_before_the_last_copy_moves_both() -> None:
    model = shared_model()
    held = Held(model)
    held.find_copies()
    first, second = (layer.mlp.up_proj.weight for layer in model.model.layers)
    first.grad = torch.ones_like(first)
    held._clip_grad_norm(model)
    assert second.grad is not None and torch.equal(first.grad, second.grad) and bool(first.grad.any())


def test_frozen_layers_may_not_cut_a_group() -> None:
    shared = SharedLayers(layers="model.layers", groups=((1, 2), (4, 5)))
    for frozen in (0, 1, 3, 4, 6):
        check_frozen(shared, frozen, "tuned")
    check_frozen(None, 2, "tuned")
    with pytest.raises(TechniqueError, match=r"steps\.tuned\.frozen_layers: 5, among the shared layers 4, 5") as caught:
        check_frozen(shared, 5, "tuned")
    assert caught.value.fix == "steps.tuned.frozen_layers=4"
