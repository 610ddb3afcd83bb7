"""Packs give the loss and the gradient of their conversations one by one."""

from typing import Any

import pytest

from tasks.distill.training.objective import Answers
from tasks.distill.training.packing import check_packs, pack
from tasks.shared.errors import TechniqueError
from tasks.shared.model.encoding import IGNORED, Encoded, collate
from tests.tiny_llama import build_model


def conversations(count: int = 9) -> list[Encoded]:
    """From 6 to 22 tokens each, the second half of which counts; weights differ."""
    import torch

    draw = torch.Generator().manual_seed(0)
    found = []
    for index in range(count):
        ids = torch.randint(3, 512, (6 + 2 * index,), generator=draw).tolist()
        half = len(ids) // 2
        labels = [IGNORED] * half + ids[half:]
        found.append({"input_ids": ids, "labels": labels, "weights": [1.0 + index % 2] * len(ids)})
    found[0]["labels"] = found[0]["input_ids"]  # its first token counts: nothing may predict it
    return found


def loss_and_gradient(model: Any, rows: list[Encoded]) -> tuple[Any, dict[str, Any]]:
    model.zero_grad()
    loss = Answers().terms(model, collate(rows, 0), 40)["hard"]
    loss.backward()
    return loss.detach(), {name: value.grad.clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_and_alone_give_the_same_loss_and_gradient(attention: str) -> None:
    import torch

    model, rows = build_model(), conversations()
    model.set_attn_implementation(attention)
    packs = pack(rows, 40)
    assert 1 < len(packs) < len(rows) and len({len(one["input_ids"]) for one in packs}) > 1, (
        "a batch of several, one of them padded"
    )
    assert max(len(one["input_ids"]) for one in packs) <= 40
    expected, gradients = loss_and_gradient(model, rows)
    found, packed = loss_and_gradient(model, packs)
    torch.testing.assert_close(found, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-4, atol=1e-6)


def test_every_token_stands_in_one_pack_with_its_own_columns() -> None:
    rows = conversations()
    found = []
    for one in pack(rows, 40):
        starts = [place for place, position in enumerate(one["position_ids"]) if position == 0]
        for begin, end in zip(starts, [*starts[1:], len(one["input_ids"])], strict=True):
            found.append({name: column[begin:end] for name, column in one.items()})
    expected = [
        {**row, "labels": [IGNORED, *row["labels"][1:]], "position_ids": [*range(len(row["labels"]))]} for row in rows
    ]
    assert sorted(found, key=lambda one: len(one["labels"])) == expected
    assert pack([], 40) == []


def test_a_model_that_does_not_heed_positions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, packs = build_model(), pack(conversations(), 40)
    check_packs(model, packs)
    forward = type(model.base_model).forward

    def blind(self: Any, input_ids: Any, position_ids: Any = None, **more: Any) -> Any:
        return forward(self, input_ids=input_ids, **more)

    monkeypatch.setattr(type(model.base_model), "forward", blind)
    with pytest.raises(TechniqueError, match="see each other"):
        check_packs(model, packs)
