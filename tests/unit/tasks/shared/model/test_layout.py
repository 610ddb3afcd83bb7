"""Where models keep their layers, and the configuration of fewer of them."""

from typing import Any

import pytest
import torch

from tasks.prune.depth import drop_layers
from tasks.shared.errors import TechniqueError
from tasks.shared.model.layout import check_rebuilt, decoder_layers, find_layout, kept_layers_config
from tests.families import FAMILIES
from tests.tiny_llama import build_model


def test_layers_are_found_by_layout_or_refused_with_the_model_s_parts() -> None:
    assert len(decoder_layers(build_model(num_hidden_layers=3))) == 3
    places = {name: find_layout(FAMILIES[name].build()).layers for name in ("qwen3", "gpt_neox", "gpt2")}
    assert places == {"qwen3": "model.layers", "gpt_neox": "gpt_neox.layers", "gpt2": "transformer.h"}
    other: Any = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(TechniqueError, match=r"Sequential: .*its parts: 0"):
        decoder_layers(other)


def test_lists_and_counts_by_layer_follow_the_kept_ones() -> None:
    config = {
        "num_hidden_layers": 4, "layer_types": ["a", "b", "c", "d"], "no_rope_layers": [1, 1, 1, 0, 1, 1], "max_window_layers": 3,
        "eos_token_id": [1, 2, 3, 4],
    }  # fmt: skip
    assert kept_layers_config(config, [0, 3]) == {
        "num_hidden_layers": 2, "layer_types": ["a", "d"], "no_rope_layers": [1, 0], "max_window_layers": 1,
    }  # fmt: skip


def test_layers_without_experts_are_named_by_their_new_index() -> None:
    config = {"num_hidden_layers": 6, "mlp_only_layers": [1], "decoder_sparse_step": 2}  # experts in layers 3 and 5
    assert kept_layers_config(config, [1, 2, 3, 5]) == {
        "num_hidden_layers": 4, "mlp_only_layers": [0, 1], "decoder_sparse_step": 1,
    }  # fmt: skip


def test_a_layer_that_computes_by_its_index_is_noticed() -> None:
    model = FAMILIES["gpt2"].build(num_hidden_layers=3, scale_attn_by_inverse_layer_idx=True)
    check_rebuilt(model)
    with pytest.raises(TechniqueError, match=r"layer 0, attn.scaling: 0.125, not 0.25"):
        drop_layers(model, [0])


def test_a_list_that_the_configuration_lost_is_noticed() -> None:
    model = FAMILIES["smollm3"].build(no_rope_layers=[1, 0])
    model.config.no_rope_layers = [1, 1]
    with pytest.raises(TechniqueError, match=r"layer 1, self_attn.use_rope: 0, not 1"):
        check_rebuilt(model)
