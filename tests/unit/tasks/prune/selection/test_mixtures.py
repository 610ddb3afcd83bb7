"""Mixtures with fewer experts: of every family that is not refused, an expert that no token takes goes without a trace."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.prune.experts import Experts
from tasks.prune.selection.mixtures import find_mixtures, keep_experts
from tasks.prune.selection.routing import measure_routing
from tasks.shared.errors import TechniqueError
from tasks.shared.mixtures import expert_count, experts_per_token, kept_experts_config
from tasks.shared.model.families import ROUTED, is_mixture
from tasks.shared.model.layout import decoder_layers
from tasks.shared.model.saving import save_model
from tests.families import COMMON, FAMILIES, GROUPED
from tests.tiny_llama import build_tokenizer

IDS = torch.arange(3, 40)[None]
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
NAMED = {"num_experts": 4, "num_experts_per_tok": 2}
NARROW = {"moe_intermediate_size": 32}
SHARED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
} | NARROW
FIRST_DENSE = {"first_k_dense_replace": 1}
LATENT = {"q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "num_key_value_heads": 4}  # fmt: skip
SIZED = {"head_dim": 16}
MIXTURES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mixtral": ("MixtralConfig", LOCAL),
    "qwen2_moe": ("Qwen2MoeConfig", NAMED | NARROW | {"shared_expert_intermediate_size": 32, "decoder_sparse_step": 2}),
    "qwen3_moe": ("Qwen3MoeConfig", NAMED | NARROW | {"mlp_only_layers": [0]}),
    "olmoe": ("OlmoeConfig", NAMED),
    "flex_olmo": ("FlexOlmoConfig", NAMED),
    "granitemoe": ("GraniteMoeConfig", LOCAL),
    "granitemoeshared": ("GraniteMoeSharedConfig", LOCAL | {"shared_intermediate_size": 32}),
    "phimoe": ("PhimoeConfig", LOCAL),
    "gpt_oss": ("GptOssConfig", LOCAL | SIZED | {"layer_types": ["sliding_attention", "full_attention"]}),
    "minimax_m2": ("MiniMaxM2Config", LOCAL | SIZED),
    "deepseek_v2": ("DeepseekV2Config", SHARED | LATENT | FIRST_DENSE),
    "deepseek_v3": ("DeepseekV3Config", SHARED | LATENT | FIRST_DENSE),
    "glm4_moe": ("Glm4MoeConfig", SHARED | SIZED | FIRST_DENSE),
    "dots1": ("Dots1Config", SHARED | FIRST_DENSE),
    "solar_open": ("SolarOpenConfig", SHARED | SIZED),
    "ernie4_5_moe": (
        "Ernie4_5_MoeConfig",
        {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_layer_start_index": 1, "moe_layer_end_index": 1} | NARROW,
    ),
}  # fmt: skip
"""Configuration of a mixture of every known router, by `model_type`; of some, the first layer has no experts."""
DENSE_FIRST = {"qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "glm4_moe", "dots1", "ernie4_5_moe"}
SHUNNED = 1
"""Expert that no token takes."""


def build(name: str) -> Any:
    """A random model; no tensor that decides about experts is zero, and the first channel is large for every token."""
    import transformers

    title, settings = MIXTURES[name]
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(getattr(transformers, title)(**(COMMON | GROUPED | settings)))
    with torch.no_grad():
        for key, weight in made.state_dict().items():
            if "bias" in key or not weight.any():
                weight.add_(0.1 * torch.randn(weight.shape))
            elif weight.dim() == 3:
                weight.mul_(2)
        made.get_input_embeddings().weight[:, 0] = 10.0
    return made.eval()


def shun(model: Any) -> None:
    """Make every router's row of an expert very negative, and what is added to its scores."""
    with torch.no_grad():
        for index in find_mixtures(model):
            for key, weight in decoder_layers(model)[index].state_dict().items():
                if key.endswith((".gate.weight", ".router.weight")):
                    weight[SHUNNED] = 0.0
                    weight[SHUNNED, 0] = -1000.0
                elif key.endswith(("router.bias", "e_score_correction_bias")):
                    weight[..., SHUNNED] = -100.0


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("name", MIXTURES)
def test_an_expert_that_no_token_takes_goes_and_the_logits_stay(name: str, tmp_path: Path) -> None:
    """Biases and corrections of routers are cut as well; shared experts, and layers without experts, stay whole."""
    from transformers import AutoModelForCausalLM

    model = build(name)
    config = model.config.to_dict()
    assert is_mixture(config) and (expert_count(config), experts_per_token(config)) == (4, 2)
    assert Experts(kept=3).refuses(config) is None
    mixtures = find_mixtures(model)
    assert list(mixtures) == ([1] if name in DENSE_FIRST else [0, 1])
    shun(model)
    kept = torch.tensor([0, 2, 3])
    small = keep_experts(model, {layer: kept for layer in mixtures}).eval()
    torch.testing.assert_close(logits(small), logits(model), rtol=1e-5, atol=1e-5)
    tokens = {layer: found for layer, (found, _) in measure_routing(model, mixtures, IDS.tolist(), 1, 0).items()}
    assert all(found[SHUNNED] == 0 and found.sum() == 2 * IDS.numel() for found in tokens.values())
    others = {layer: found.argsort()[:3].sort().values for layer, found in tokens.items()}
    assert not torch.allclose(logits(keep_experts(model, others).eval()), logits(model), atol=1e-3), (
        "the most taken one"
    )
    small.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert all(torch.equal(weight, again.state_dict()[key]) for key, weight in small.state_dict().items())
    after = again.config.to_dict()
    assert expert_count(after) == 3 and kept_experts_config(config, 3).items() <= after.items()
    assert all(len(weight) == 3 for experts in find_mixtures(again).values() for weight in experts.parameters())
    assert all(len(weight) == 4 for experts in mixtures.values() for weight in experts.parameters()), "it stays whole"


@pytest.mark.parametrize("name", ["deepseek_v3", "ernie4_5_moe"])
def test_corrections_of_a_router_stay_float32_in_a_folder_of_bfloat16(name: str, tmp_path: Path) -> None:
    """A buffer in one family, a parameter in the other; rounded, they would choose other experts."""
    from transformers import AutoModelForCausalLM

    model = build(name)
    small = keep_experts(model, {layer: torch.tensor([0, 2, 3]) for layer in find_mixtures(model)})
    wanted = {key: weight[..., [0, 2, 3]] for key, weight in model.state_dict().items() if "correction_bias" in key}
    save_model(small, build_tokenizer(), tmp_path)
    found = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert len(wanted) == 1 and all(torch.equal(found[key], value) for key, value in wanted.items())
    assert all(
        value.dtype == torch.float32 and not torch.equal(value, value.bfloat16().float()) for value in wanted.values()
    )
    assert found["lm_head.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_with_all_experts_it_is_the_same_model(name: str) -> None:
    model = build(name)
    whole = keep_experts(model, {layer: torch.arange(4) for layer in find_mixtures(model)})
    assert all(torch.equal(weight, model.state_dict()[key]) for key, weight in whole.state_dict().items())
    assert whole.config.to_dict() | {"dtype": None} == model.config.to_dict()


def test_experts_go_layer_by_layer() -> None:
    model = FAMILIES["mixtral"].build()
    small = keep_experts(model, {0: torch.tensor([0, 3]), 1: torch.tensor([1, 2])})
    for index, places in ((0, [0, 3]), (1, [1, 2])):
        for part in ("gate.weight", "experts.gate_up_proj", "experts.down_proj"):
            after, before = (decoder_layers(each)[index].mlp.get_parameter(part) for each in (small, model))
            assert torch.equal(after, before[places]), part


def test_every_known_router_is_tested() -> None:
    assert MIXTURES.keys() == ROUTED


def test_a_model_whose_experts_are_not_stacked_or_cannot_be_cut_is_refused() -> None:
    dense, mixture = FAMILIES["llama"].build(), FAMILIES["mixtral"].build()
    dense.config.num_local_experts = 4
    with pytest.raises(TechniqueError, match="no layer has 4 experts in stacked tensors"):
        find_mixtures(dense)
    mixture.model.layers[1].mlp.register_buffer("spare", torch.zeros(4))
    with pytest.raises(TechniqueError, match=r"1 tensors cannot be cut.*layers\.1\.mlp\.spare is in one model only"):
        keep_experts(mixture, {0: torch.arange(3), 1: torch.arange(3)})
    with pytest.raises(TechniqueError, match=r"layers\.1\.mlp\.gate\.weight"):
        keep_experts(FAMILIES["mixtral"].build(), {0: torch.arange(3)})
