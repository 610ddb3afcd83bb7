"""Scores of every technique that chooses: computed in bfloat16, they choose as in float32 wherever the choice is clear."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tasks.prune.heads import Heads
from tasks.prune.hidden import Hidden
from tasks.prune.masking.scores import magnitude, wanda
from tasks.prune.selection.importance import Criterion
from tasks.prune.selection.layers import measure_angles, measure_influence
from tasks.prune.selection.mixtures import find_mixtures
from tasks.prune.selection.routing import CRITERIA as EXPERT_CRITERIA
from tasks.prune.selection.routing import ExpertCriterion, Routing, measure_routing
from tasks.prune.width import Width
from tasks.shared.model.calibration import batches
from tasks.shared.model.input_statistics import column_energy
from tasks.shared.model.layer_walk import walk_layers
from tasks.shared.model.layout import decoder_layers
from tasks.shared.model.prunable import matrices_of, view_of
from tests.families import FAMILIES
from tests.tiny_llama import build_model

IDS = [[(7 * row + 13 * place) % 500 + 3 for place in range(30 - row)] for row in range(8)]
MEASURED: tuple[Criterion, ...] = ("activation", "contribution", "fluctuation", "wanda", "taylor")


def same_by_a_margin(one: torch.Tensor, other: torch.Tensor, lowest: int, margin: float = 0.05) -> None:
    """Assert that the units with the lowest scores are the same, those near the limit aside.

    one, other: (..., units), scores in float32 and in bfloat16.  lowest: number of units that go.
    A unit counts if its score differs from the limit, midway between the last that goes and the first that stays, by more than the margin.
    """
    limit = one.sort(-1).values[..., lowest - 1 : lowest + 1].mean(-1, keepdim=True)
    clear = (one / limit - 1).abs() > margin
    assert 2 * int(clear.sum()) >= clear.numel()
    assert torch.equal((one > limit)[clear], (other > limit)[clear])


def with_a_loud_group(**changes: Any) -> Any:
    """A model whose heads differ: values and outgoing weights of the second group are half as large again as the others'."""
    model = build_model(**changes)
    with torch.no_grad():
        for layer in decoder_layers(model):
            layer.self_attn.v_proj.weight[16:] *= 1.5
            layer.self_attn.o_proj.weight[:, 32:] *= 1.5
    return model


def pair(build: Callable[[], Any] = with_a_loud_group) -> tuple[Any, Any]:
    return build(), build().bfloat16()


@pytest.mark.parametrize("criterion", MEASURED)
@pytest.mark.parametrize("technique", [Heads, Width, Hidden])
def test_units_and_channels(technique: Any, criterion: Criterion) -> None:
    """4 heads or 128 neurons in each layer, and 64 channels at each layer and the head."""
    chosen = technique(criterion=criterion, ratio=0.5)
    for one, other in zip(*(chosen.scores(model, IDS, 0, 0)[chosen.axis] for model in pair()), strict=True):
        same_by_a_margin(one, other, len(one) // 2)


@pytest.mark.parametrize("technique", [Heads, Width, Hidden])
def test_sums_over_many_batches(technique: Any) -> None:
    """400 batches of a conversation each: a sum in bfloat16 stops growing where a summand is below 1/256 of it."""
    ids = [[(7 * row) % 500 + 3, (11 * row) % 500 + 3] for row in range(400)]
    chosen = technique(criterion="activation", ratio=0.5, batch_size=1)
    models = pair(lambda: with_a_loud_group(num_hidden_layers=1))
    one, other = (chosen.scores(model, ids, 0, 0)[chosen.axis][0] for model in models)
    same_by_a_margin(one, other, len(one) // 2)


@pytest.mark.parametrize("technique", [Heads, Width, Hidden])
def test_units_and_channels_by_their_weights_alone(technique: Any) -> None:
    """Random weights make neurons and channels nearly equal, and rounding moves these sums by less than a thousandth."""
    chosen = technique(criterion="magnitude", ratio=0.5)
    for one, other in zip(*(chosen.scores(model, [], 0, 0)[chosen.axis] for model in pair()), strict=True):
        same_by_a_margin(one, other, len(one) // 2, margin=0.01)


@pytest.mark.parametrize("measure", [measure_influence, lambda *given: measure_angles(*given, count=2)])
def test_layers(measure: Callable[..., list[float]]) -> None:
    one, other = (torch.tensor(measure(model, IDS, 4, 0)) for model in pair(lambda: build_model(num_hidden_layers=8)))
    for lowest in (1, 2, 4):
        same_by_a_margin(one, other, lowest)


def test_single_weights() -> None:
    """Magnitude compares within a matrix, Wanda within a row, by the norms of what enters the matrix."""
    first, second = pair()
    energies = [entering_energies(model) for model in (first, second)]
    matrices = [{name: view_of(part) for name, part in matrices_of(model).items()} for model in (first, second)]
    assert len(matrices[0]) == 4 * 7 and matrices[0].keys() == energies[0].keys() == energies[1].keys()
    for name, weight in matrices[0].items():
        rounded = matrices[1][name]
        same_by_a_margin(magnitude(weight).flatten(), magnitude(rounded).flatten(), weight.numel() // 2)
        scores = [wanda(weight, energies[0][name]), wanda(rounded, energies[1][name])]
        same_by_a_margin(scores[0], scores[1], weight.shape[1] // 2)


def entering_energies(model: Any) -> dict[str, torch.Tensor]:
    """Squares of what enters each matrix, summed over the tokens."""
    found = {}
    for visit in walk_layers(model, batches(IDS, 4, 0)):
        own = set(map(id, visit.layer.modules()))
        parts = {name: part for name, part in matrices_of(model).items() if id(part) in own}
        found |= visit.input_sums(parts, column_energy)
    return found


def with_loud_experts() -> Any:
    """A mixture whose later four of eight experts give half as much again."""
    model = FAMILIES["mixtral"].build(num_local_experts=8)
    with torch.no_grad():
        for experts in find_mixtures(model).values():
            experts.get_parameter("down_proj")[4:] *= 1.5
    return model


@pytest.mark.parametrize("criterion", ["reap", "total"])
def test_experts(criterion: ExpertCriterion) -> None:
    """Also where rounding sends some tokens to other experts."""
    found = []
    for model in pair(with_loud_experts):
        sums = measure_routing(model, find_mixtures(model), IDS, 4, 0)
        found.append({layer: Routing(*each, torch.empty(0)) for layer, each in sums.items()})
    for layer, routing in found[0].items():
        one, other = (EXPERT_CRITERIA[criterion](each) for each in (routing, found[1][layer]))
        same_by_a_margin(one, other, 4)
