"""A random two-layer model of every family that docs/families.md lists, with the quirks of the family."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tasks.shared.model.families import TITLES
from tasks.shared.model.saving import save_model
from tests.tiny_llama import build_tokenizer

COMMON = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512,
    "max_position_embeddings": 512, "initializer_range": 0.1, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}
TIED = {"tie_word_embeddings": True}
WIDE_HEADS = {"head_dim": 32}
"""Heads that are wider than hidden / heads, as in Qwen3, Gemma and Mistral Nemo."""
WINDOWED_FIRST = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA = TIED | WIDE_HEADS | {"num_key_value_heads": 1, "query_pre_attn_scalar": 32}


@dataclass(frozen=True)
class Family:
    """A family of models.

    config: name of its configuration's class.  settings: those of an ordinary model of the family.
    variant: settings that make its two layers differ, or another of its quirks.
    """

    config: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    variant: Mapping[str, Any] = field(default_factory=dict)

    def build(self, seed: int = 0, **changes: Any) -> Any:
        """Return a random model in evaluation mode, in float32; norms and biases are random too, so that a lost one shows."""
        import torch
        import transformers

        config = getattr(transformers, self.config)(**(COMMON | dict(self.settings) | changes))
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.2 * torch.randn(parameter.shape))
        return model.eval()


FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaConfig", GROUPED, {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "mistral": Family("MistralConfig", GROUPED | WIDE_HEADS | {"sliding_window": 2048, "max_position_embeddings": 4096}, {"sliding_window": 8}),
    "qwen2": Family("Qwen2Config", GROUPED | TIED, {"use_sliding_window": True, **WINDOWED_FIRST}),
    "qwen3": Family("Qwen3Config", GROUPED | TIED | WIDE_HEADS, {"use_sliding_window": True, **WINDOWED_FIRST}),
    "gemma2": Family(
        "Gemma2Config", GEMMA | WINDOWED_FIRST | {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0},
        {"layer_types": ["full_attention", "sliding_attention"]},
    ),
    "gemma3_text": Family("Gemma3TextConfig", GEMMA | {"sliding_window": 8}, WINDOWED_FIRST),
    "phi3": Family("Phi3Config", GROUPED | {"sliding_window": 2047, "max_position_embeddings": 4096}, {"sliding_window": 8}),
    "smollm3": Family("SmolLM3Config", GROUPED | TIED, {"no_rope_layers": [1, 0]}),
    "olmo2": Family("Olmo2Config", GROUPED),
    "granite": Family(
        "GraniteConfig", GROUPED | TIED | {
            "embedding_multiplier": 3.0, "logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.1,
        },
    ),
    "gpt_neox": Family("GPTNeoXConfig", {"rotary_pct": 0.25}, {"use_parallel_residual": False}),
    "gpt2": Family("GPT2Config", TIED, {"n_inner": 128}),
    "mixtral": Family("MixtralConfig", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": Family(
        "Qwen3MoeConfig", GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True},
        {"mlp_only_layers": [0]},
    ),
}  # fmt: skip
"""By `model_type`."""
assert FAMILIES.keys() == TITLES.keys()

WRITERS = {
    "embed_tokens.weight": 1, "o_proj.weight": 0, "o_proj.bias": 0, "down_proj.weight": 0, "down_proj.bias": 0, "experts.down_proj": 1,
}  # fmt: skip
"""Weights that write the hidden state, by the end of their names, and their axis of channels."""


def silence_channels(model: Any, channels: Any) -> None:
    """Set in place what writes these channels of the hidden state to zero.

    channels: (channels,), indices, int64.
    """
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            axis = next((axis for ending, axis in WRITERS.items() if name.endswith(ending)), None)
            if axis is not None:
                weight.index_fill_(axis, channels, 0.0)


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


def save_family(folder: Path, name: str, model: Any = None, seed: int = 0, **changes: Any) -> Path:
    """Write a family's model folder in float32, tokenizer included."""
    made = FAMILIES[name].build(seed, **changes) if model is None else model
    save_model(made, tokenizer(name), folder, dtype="float32")
    return folder
