"""What a plan knows of a model from its files."""

from pathlib import Path

import pytest

from tasks.prune.depth import Depth
from tasks.shared.errors import TechniqueError
from tasks.shared.gguf.writer import write_gguf
from tasks.shared.mixtures import expert_count, experts_per_token
from tasks.shared.model.families import check_family, family_config, is_mixture, with_layer_lists
from tests.families import save_family


def test_lists_that_a_configuration_leaves_out_are_filled_in() -> None:
    full = with_layer_lists({"model_type": "gemma3_text", "num_hidden_layers": 7})["layer_types"]
    assert full == [*["sliding_attention"] * 5, "full_attention", "sliding_attention"]
    assert with_layer_lists({"model_type": "smollm3", "num_hidden_layers": 4})["no_rope_layers"] == [1, 1, 1, 0]
    given = {"model_type": "gemma2", "num_hidden_layers": 1, "layer_types": ["full_attention"]}
    assert with_layer_lists(given) == given


@pytest.mark.parametrize("name", ["qwen3", "gpt_neox", "gemma3_text"])
def test_filled_in_lists_are_those_of_transformers_and_a_gguf_has_its_family(name: str, tmp_path: Path) -> None:
    folder = save_family(tmp_path / "model", name)
    assert family_config(folder)["model_type"] == name
    write_gguf(folder, tmp_path / "model.gguf", "f16")
    found = family_config(tmp_path / "model.gguf")
    assert found["model_type"] == name and found["num_hidden_layers"] == 2


def test_experts_are_seen_in_a_folder_and_in_a_gguf(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "model", "mixtral")
    write_gguf(folder, tmp_path / "model.gguf", "f16")
    for config in (family_config(folder), family_config(tmp_path / "model.gguf")):
        assert is_mixture(config) and (expert_count(config), experts_per_token(config)) == (4, 2)
    assert expert_count({"num_experts": [4, 8, "many"]}) == 8 and expert_count({"moe_num_experts": 6}) == 6
    assert not is_mixture({"num_experts": "eight"}) and experts_per_token({"num_experts": 8}) == 0
    assert not is_mixture({"num_experts": None}) and family_config(tmp_path / "none") == {}


def test_a_technique_by_itself_refuses_with_its_reason() -> None:
    with pytest.raises(TechniqueError, match="a gemma3 model: several parts"):
        check_family(Depth(), {"model_type": "gemma3", "text_config": {}}, "model")
