"""A random two-layer model of every family that docs/families.md lists, with the quirks of the family."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tasks.shared.model.saving import save_model
from tests.tiny_llama import build_tokenizer

COMMON = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512,
    "max_position_embeddings": 512, "initializer_range": 0.1, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}
WIDE_HEADS = {"head_dim": 32}
"""Heads that are wider than hidden / heads, as in Qwen3, Gemma and Mistral Nemo."""
MIXED_WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
TIED = {"tie_word_embeddings": True}


@dataclass(frozen=True)
class Family:
    """A family, as transformers names its classes, and the settings that show its quirks."""

    title: str
    config: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def build(self, **changes: Any) -> Any:
        """Return a random model in evaluation mode, in float32."""
        import torch
        import transformers

        config = getattr(transformers, self.config)(**(COMMON | dict(self.settings) | changes))
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:  # norms and biases start as constants: a wrong one would not show
                    parameter.add_(0.2 * torch.randn(parameter.shape))
                assert parameter.isfinite().all(), name
        return model.eval()


FAMILIES: Mapping[str, Family] = {
    "llama": Family("Llama", "LlamaConfig", GROUPED),
    "mistral": Family("Mistral", "MistralConfig", GROUPED | WIDE_HEADS | {"sliding_window": 2048}),
    "qwen2": Family(
        "Qwen2", "Qwen2Config", GROUPED | TIED | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    ),
    "qwen3": Family("Qwen3", "Qwen3Config", GROUPED | TIED | WIDE_HEADS),
    "gemma2": Family(
        "Gemma 2", "Gemma2Config", TIED | WIDE_HEADS | MIXED_WINDOWS | {
            "num_key_value_heads": 1, "query_pre_attn_scalar": 16, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0,
        },
    ),
    "gemma3_text": Family(
        "Gemma 3", "Gemma3TextConfig", TIED | WIDE_HEADS | MIXED_WINDOWS | {"num_key_value_heads": 1, "query_pre_attn_scalar": 16}
    ),
    "phi3": Family("Phi-3", "Phi3Config", GROUPED | {"sliding_window": 8}),
    "smollm3": Family("SmolLM3", "SmolLM3Config", GROUPED | TIED | {"no_rope_layers": [1, 0]}),
    "olmo2": Family("OLMo 2", "Olmo2Config", GROUPED),
    "granite": Family(
        "Granite", "GraniteConfig", GROUPED | TIED | {
            "embedding_multiplier": 3.0, "logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.1,
        },
    ),
    "gpt_neox": Family("GPT-NeoX", "GPTNeoXConfig", {"rotary_pct": 0.25}),
    "gpt2": Family("GPT-2", "GPT2Config", TIED | {"n_inner": 128}),
    "mixtral": Family("Mixtral", "MixtralConfig", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": Family(
        "Qwen3-MoE", "Qwen3MoeConfig", GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
    ),
}  # fmt: skip
"""By `model_type`."""


QWEN_SPLITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How transformers splits text for `model_type` qwen2, whatever the tokenizer's file says."""


@cache
def tokenizer(name: str) -> Any:
    """A byte-level tokenizer that transformers reloads unchanged from a family's folder."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    made = build_tokenizer()
    if name == "qwen2":
        core = made.backend_tokenizer
        core.normalizer = normalizers.NFC()
        parts = [
            pre_tokenizers.Split(Regex(QWEN_SPLITS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        core.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return made


def save_family(folder: Path, name: str, **changes: Any) -> Path:
    """Write a family's model folder in float32, tokenizer included."""
    save_model(FAMILIES[name].build(**changes), tokenizer(name), folder, dtype="float32")
    return folder
