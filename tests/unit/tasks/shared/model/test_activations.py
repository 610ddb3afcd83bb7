"""Sums over a model's activations: what the hooks see, and that none of them stays."""

import pytest
import torch

from tasks.shared.model.activations import collect
from tasks.shared.model.calibration import batches
from tests.tiny_llama import build_model


def test_sums_over_padded_batches_are_those_of_rows_one_by_one() -> None:
    model = build_model()
    ids = [[3, 4, 5, 6, 7], [8, 9], [10, 11, 12]]
    points = [("up", model.model.layers[0].mlp.up_proj), ("norms", model.model.norm)]
    points += [("norms", model.model.layers[0].input_layernorm)]

    def reduce(point: str, before: torch.Tensor, after: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        assert before.shape[:2] == after.shape[:2] == mask.shape
        return ((before if point == "up" else after).double().square() * mask[..., None]).sum((0, 1))

    together = collect(model, batches(ids, 3, pad_id=0), points, reduce)
    alone = collect(model, [{"input_ids": torch.tensor([row])} for row in ids], points, reduce)
    assert together.keys() == {"up", "norms"} and together["up"].shape == (model.config.hidden_size,)
    for name, total in together.items():
        torch.testing.assert_close(total, alone[name], rtol=1e-4, atol=1e-6)


def test_no_hook_stays_after_an_error() -> None:
    model = build_model()
    head = model.model.layers[0].mlp

    def fail(*_: object) -> torch.Tensor:
        raise ValueError("no such reduction")

    with pytest.raises(ValueError, match="no such"):
        collect(model, [{"input_ids": torch.tensor([[3, 4]])}], [(0, head)], fail)
    assert not head._forward_hooks
