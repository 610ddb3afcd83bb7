"""Layer by layer: the states are the model's own, and a changed layer changes what the next one reads."""

from typing import Any

import pytest
import torch

from tasks.shared.errors import TechniqueError
from tasks.shared.model.activations import collect
from tasks.shared.model.calibration import batches
from tasks.shared.model.input_statistics import column_energy, gram
from tasks.shared.model.layer_walk import walk_layers
from tasks.shared.model.layout import decoder_layers
from tests.families import FAMILIES
from tests.tiny_llama import build_model

IDS = [list(range(3, 33)), list(range(40, 52)), list(range(7, 27))]
PAD = 0


def linear_of(layer: Any) -> dict[str, Any]:
    from transformers.pytorch_utils import Conv1D

    return {name: part for name, part in layer.named_modules() if isinstance(part, torch.nn.Linear | Conv1D)}


@pytest.mark.parametrize("varied", [False, True], ids=["ordinary", "variant"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("mixtral", "qwen3_moe")])
def test_statistics_are_those_of_whole_passes(name: str, varied: bool) -> None:
    """With padding, windows, positions and every family's arguments."""
    torch.set_num_threads(1)
    model = FAMILIES[name].build(**(FAMILIES[name].variant if varied else {}))
    points = [((index, part), module) for index, layer in enumerate(decoder_layers(model)) for part, module in linear_of(layer).items()]  # fmt: skip
    wanted = collect(model, batches(IDS, 2, PAD), points, lambda _, before, __, mask: column_energy(before, mask))
    for visit in walk_layers(model, batches(IDS, 2, PAD)):
        found = visit.input_sums(linear_of(visit.layer), column_energy)
        for part, energy in found.items():
            torch.testing.assert_close(energy, wanted[visit.index, part], rtol=1e-4, atol=1e-6)


def test_padding_does_not_count_and_shared_inputs_are_summed_once() -> None:
    model, kinds = build_model(), {"q_proj": "self_attn.q_proj", "v_proj": "self_attn.v_proj", "down": "mlp.down_proj"}
    sums: list[list[dict[str, torch.Tensor]]] = []
    for size in (3, 1):
        walk = walk_layers(model, batches(IDS, size, PAD))
        sums.append([visit.input_sums({name: visit.layer.get_submodule(place) for name, place in kinds.items()}, gram) for visit in walk])  # fmt: skip
    for together, apart in zip(*sums, strict=True):
        assert together["q_proj"] is together["v_proj"] and together["down"] is not together["q_proj"]
        for name in kinds:
            torch.testing.assert_close(together[name], apart[name], rtol=1e-4, atol=1e-4)
    states = torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    torch.testing.assert_close(gram(states, mask).diagonal(), column_energy(states, mask), rtol=1e-5, atol=1e-5)


def test_a_changed_layer_changes_what_the_next_one_reads() -> None:
    model, seen = build_model(), []
    for visit in walk_layers(model, batches(IDS, 3, PAD)):
        seen.append(visit.calls[0].states.clone())
        if visit.index == 1:
            with torch.no_grad():
                visit.layer.self_attn.o_proj.weight.zero_()
                visit.layer.mlp.down_proj.weight.zero_()
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2]), "a layer without its last projections only passes on"
    assert "forward" not in vars(model.model.layers[0]), "the model is left as it was"


def test_activations_that_are_not_finite_are_refused_with_their_layer() -> None:
    model = build_model()
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.fill_(3e38)
    with pytest.raises(TechniqueError, match="what layer 2 gives is not finite in 1 of 1 batches"):
        list(walk_layers(model, batches(IDS, 3, PAD)))
