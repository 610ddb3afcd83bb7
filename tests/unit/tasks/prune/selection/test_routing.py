"""What experts do on calibration text: counts and gate-weighted norms, by the model's own router."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from tasks.prune.selection.mixtures import find_mixtures
from tasks.prune.selection.routing import (
    Routing,
    check_call,
    expert_norms,
    frequency,
    measure_routing,
    reap,
    routed,
    total,
)
from tasks.shared.errors import TechniqueError
from tests.families import FAMILIES

IDS = [list(range(3, 30)), [7, 9, 300], [41, 40, 400, 12, 77]]
"""Conversations of different lengths, so that batches have padding."""


def test_scores_by_hand() -> None:
    """Three tokens take two of four experts each; nobody takes the last one."""
    chosen = torch.tensor([[0, 1], [1, 2], [1, 0]])
    gates = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.9, 0.1]])
    norms = torch.tensor([[2.0, 4.0], [6.0, 8.0], [10.0, 5.0]])
    tokens = routed(chosen, torch.ones(3, 2), 4).long()
    routing = Routing(tokens, routed(chosen, gates * norms, 4), torch.rand(4))
    assert tokens.tolist() == [2, 3, 1, 0] and frequency(routing).tolist() == [2, 3, 1, 0]
    wanted = [(0.75 * 2 + 0.1 * 5) / 2, (0.25 * 4 + 0.5 * 6 + 0.9 * 10) / 3, 0.5 * 8, 0]
    assert reap(routing).tolist() == pytest.approx(wanted)
    assert total(routing).tolist() == pytest.approx([2.0, 13.0, 4.0, 0.0])


def by_loops(model: Any, ids: list[int], normalized: bool) -> tuple[list[list[int]], list[list[float]]]:
    """Counts and sums of every layer's experts, token by token from the router's rows and the experts' matrices."""
    states: dict[int, Any] = {}
    handles = [
        layer.mlp.register_forward_pre_hook(lambda _, args, index=index: states.update({index: args[0][0]}))
        for index, layer in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
        counts, sums = [], []
        for index, layer in enumerate(model.model.layers):
            count, total = [0] * 4, [0.0] * 4
            for state in states[index]:
                gates = (layer.mlp.gate.weight @ state).softmax(0)
                best = gates.topk(2)
                for expert, gate in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                    gated, up = (layer.mlp.experts.gate_up_proj[expert] @ state).chunk(2)
                    given = layer.mlp.experts.down_proj[expert] @ (functional.silu(gated) * up)
                    count[expert] += 1
                    total[expert] += gate / (float(best.values.sum()) if normalized else 1) * float(given.norm())
            counts.append(count)
            sums.append(total)
    for handle in handles:
        handle.remove()
    return counts, sums


@pytest.mark.parametrize(("name", "normalized"), [("mixtral", True), ("qwen3_moe", True), ("qwen3_moe", False)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_model_s_experts_are_measured_as_loops_would_without_padding(
    name: str, normalized: bool, batch_size: int
) -> None:
    """With the gate weights that the checkpoint asks for: of the chosen experts they add up to 1, or not."""
    model = FAMILIES[name].build(**({"norm_topk_prob": normalized} if name == "qwen3_moe" else {}))
    found = measure_routing(model, find_mixtures(model), IDS, batch_size, pad_id=0)
    loops = [by_loops(model, ids, normalized) for ids in IDS]
    for layer, (tokens, outputs) in found.items():
        assert tokens.tolist() == [sum(counts[layer][expert] for counts, _ in loops) for expert in range(4)]
        assert outputs.tolist() == pytest.approx([sum(sums[layer][expert] for _, sums in loops) for expert in range(4)], rel=1e-4)  # fmt: skip
        assert int(tokens.sum()) == 2 * sum(map(len, IDS))
    counted = measure_routing(model, find_mixtures(model), IDS, batch_size, pad_id=0, outputs=False)
    assert all(torch.equal(counted[layer][0], found[layer][0]) and not counted[layer][1].any() for layer in found)
    assert not any(experts._forward_hooks for experts in find_mixtures(model).values())


def test_norms_are_those_of_each_expert_alone() -> None:
    """Gate-weighted, they add up to what the block gives where every expert gives the same direction."""
    model = FAMILIES["mixtral"].build()
    experts = find_mixtures(model)[0]
    with torch.no_grad():
        experts.down_proj[:, 1:] = 0
        states, chosen = torch.randn(5, 64), torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2]])
        norms = expert_norms(experts, states, chosen)
        for expert in range(4):
            alone = experts(states, torch.full((5, 1), expert), torch.ones(5, 1))
            assert torch.allclose(norms[chosen == expert], alone[:, 0].abs()[(chosen == expert).any(1)], atol=1e-6)


def test_experts_that_are_called_in_another_way_are_refused() -> None:
    mask, states = torch.ones(6, dtype=torch.bool), torch.zeros(6, 64)
    check_call(0, (states, torch.zeros(6, 2), torch.zeros(6, 2)), mask)
    for values in ((states,), (states, torch.zeros(6, 2), torch.zeros(6, 4)), (states[None], *[torch.zeros(6, 2)] * 2)):
        with pytest.raises(TechniqueError, match="layer 3: its experts are called with tensors of shapes"):
            check_call(3, values, mask)
