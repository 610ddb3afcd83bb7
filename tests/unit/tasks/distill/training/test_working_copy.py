"""Weights cast for the forward and backward pass; the optimizer's own stay in float32."""

from pathlib import Path
from typing import Any

import torch

from tasks.distill.sft import SFT
from tasks.distill.training.loop import train_model
from tasks.distill.training.objective import Answers, last_hidden
from tasks.distill.training.working_copy import with_cast_weights
from tasks.shared.model.encoding import collate, encode
from tests.tiny_llama import build_model, build_tokenizer, chats, empty_run, save_tiny


def gradients(dtype: torch.dtype, seen: list[torch.dtype]) -> dict[str, Any]:
    batch = collate(encode(chats(6), build_tokenizer(), 512), 0)
    model = build_model().train()
    model.model.layers[0].register_forward_hook(lambda _, __, out: seen.append(out.dtype))

    def work() -> Any:
        seen.append(model.model.norm.weight.dtype)
        return sum(Answers().terms(model, batch, None).values())

    with_cast_weights(model, dtype, work).backward()
    assert all(weight.dtype == torch.float32 for weight in model.parameters()), "the weights themselves are as before"
    return {name: weight.grad for name, weight in model.named_parameters()}


def test_gradients_of_cast_weights_reach_the_weights() -> None:
    exact = gradients(torch.float64, [])
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        seen: list[torch.dtype] = []
        found = gradients(dtype, seen)
        assert seen == [dtype, dtype], "weights and the sum of the layers' outputs"
        for name, wanted in exact.items():
            assert found[name].dtype == torch.float32
            error = (found[name].double() - wanted.double()).norm() / wanted.double().norm()
            assert error < near, f"{name} in {dtype}: {error:.3f}"


class Seen(Answers):
    """Answers, with the types of the states that it computes."""

    def __init__(self) -> None:
        self.types: set[torch.dtype] = set()

    def terms(self, model: Any, batch: Any, count: Any) -> Any:
        self.types.add(last_hidden(model, batch).dtype)
        return super().terms(model, batch, count)


def test_a_training_in_bfloat16_computes_with_copies_unless_it_recomputes(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", build_model(num_hidden_layers=1))
    for name, settings, wanted in (
        ("copies", {"precision": "bfloat16"}, torch.bfloat16),
        ("recomputed", {"precision": "bfloat16", "gradient_checkpointing": True}, torch.float32),
        ("exact", {"precision": "float32"}, torch.float32),
    ):
        out, run = empty_run(tmp_path, name)
        seen = Seen()
        train_model(SFT(epochs=1, batch_size=8, validation=0.25, **settings), model, chats(16), seen, out, run)
        assert seen.types == {wanted}, name


def test_weights_that_a_family_keeps_in_float32_are_not_cast() -> None:
    model = build_model()
    model._keep_in_fp32_modules = ["norm"]
    found = with_cast_weights(
        model, torch.bfloat16, lambda: {name: weight.dtype for name, weight in model.named_parameters()}
    )
    kept = {name for name, dtype in found.items() if dtype == torch.float32}
    assert kept == {"model.norm.weight"} and len(found) > 10
