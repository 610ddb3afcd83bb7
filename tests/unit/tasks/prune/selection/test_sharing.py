"""Shared layers: which runs are chosen, and what their weights become."""

from itertools import combinations

import pytest
import torch

from tasks.prune.selection.layers import Reading, angular_distance
from tasks.prune.selection.sharing import check_groups, choose_runs, measure_repeats, run_scores, share_layers
from tasks.shared.errors import TechniqueError
from tasks.shared.model.layout import decoder_layers
from tests.tiny_llama import build_model

IDS = [list(range(3, 40)), list(range(50, 60))]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("count", "size"), [(1, 2), (2, 2), (3, 2), (2, 3)])
def test_the_runs_have_the_lowest_sum_of_all_without_overlap(seed: int, count: int, size: int) -> None:
    scores = torch.rand(9 - size, generator=torch.Generator().manual_seed(seed)).tolist()
    free = range(1, 8)
    starts = range(1, 8 - size + 1)
    apart = [
        runs for runs in combinations(starts, count) if all(b - a >= size for a, b in zip(runs, runs[1:], strict=False))
    ]
    best = min(apart, key=lambda runs: sum(scores[start] for start in runs))
    assert choose_runs(scores, free, count, size) == list(best)


def test_the_cheapest_run_gives_way_where_it_would_leave_no_room() -> None:
    assert choose_runs([9.0, 0.1, 9.0], range(0, 4), 2, 2) == [0, 2]


def test_layers_of_different_kinds_are_not_shared() -> None:
    model = build_model()
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(64, 96, bias=False)
    scores = run_scores("random", model, Reading([], 1, 0), 2, seed=0)
    assert [score == float("inf") for score in scores] == [True, True, False]
    assert choose_runs(scores, range(0, 4), 1, 2) == [2]
    with pytest.raises(TechniqueError, match="no 2 runs of 2 layers whose weights have the same shapes"):
        choose_runs(scores, range(0, 4), 2, 2)
    with pytest.raises(TechniqueError, match=r"different shapes in the layers of \(0, 1\)"):
        check_groups(((0, 1),), 4, list(decoder_layers(model)))


def test_a_layer_that_is_a_copy_of_the_one_before_costs_nothing_to_repeat() -> None:
    model = build_model()
    share_layers(list(decoder_layers(model)), ((1, 2),), "copy_first")
    found = measure_repeats(model, IDS, 2, 0, size=2)
    assert found[1] == pytest.approx(0.0, abs=1e-3) and min(found[0], found[2]) > 0.05
    assert choose_runs(run_scores("repeat", model, Reading(IDS, 2, 0), 2, seed=0), range(0, 4), 1, 2) == [1]


def test_repeats_are_measured_between_both_layers_outputs() -> None:
    """By hand, from the states that enter each layer; the run of three adds its second and third layer up."""
    model = build_model()
    ids = torch.tensor([IDS[0]])
    layers = decoder_layers(model)
    with torch.inference_mode():
        states = model(ids, output_hidden_states=True).hidden_states
        turned = model.model.rotary_emb(states[0], torch.arange(37)[None])

        def run(layer: int, entering: int) -> torch.Tensor:
            found = layers[layer](states[entering], position_embeddings=turned)
            return found[0] if isinstance(found, tuple) else found

        mask = torch.ones(1, 37)
        by_hand = sum(float(angular_distance(run(later, later), run(0, later), mask)) for later in (1, 2)) / 37
    assert measure_repeats(model, [IDS[0]], 1, 0, size=3)[0] == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("method", ["copy_first", "mean"])
def test_the_layers_of_a_group_have_the_same_weights_and_the_others_their_own(method: str) -> None:
    before, after = build_model(), build_model()
    share_layers(list(decoder_layers(after)), ((0, 1, 3),), method)  # type: ignore[arg-type]
    states = [[layer.state_dict() for layer in decoder_layers(model)] for model in (before, after)]
    for name, own in states[0][2].items():
        assert torch.equal(states[1][2][name], own)
        group = [states[0][index][name] for index in (0, 1, 3)]
        wanted = group[0] if method == "copy_first" else sum(group) / 3
        assert all(torch.equal(states[1][index][name], states[1][0][name]) for index in (1, 3))
        torch.testing.assert_close(states[1][0][name], wanted)
    assert len({weight.data_ptr() for weight in after.parameters()}) == len(list(after.parameters())), "not one tensor"
