"""Models and context lengths that llama.cpp computes differently from transformers."""

from collections.abc import Mapping
from typing import Any

from tasks.shared.model.families import NARROW_HEADS, with_layer_lists
from tasks.shared.model.layout import LAYER_LISTS, layer_count
from tasks.shared.technique import Refusal

UNWINDOWED = frozenset({"mistral", "mixtral", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "starcoder2"})  # fmt: skip
"""Families whose sliding window llama.cpp ignores: it attends to all tokens before."""
OFF_BY_DEFAULT = frozenset({"qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3"})
"""Of these, families that have no window without `use_sliding_window`."""
SHORTEST = 1024
"""Tokens of the shortest sliding window that is worth a file."""
EVEN_HEADS = frozenset({"qwen2", "qwen2_moe", "granite", "olmo2", "phi3"})
"""Families whose heads llama.cpp takes to be hidden / heads wide, whatever the configuration says."""
BIASES = ("attention_bias", "mlp_bias")
UNBIASED = frozenset({"smollm3", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "olmo2"})
"""Families of which llama.cpp reads no such biases; Llama's and Granite's it reads."""
SCALED = frozenset({"llama", "mistral", "qwen3"})
"""Families in which llama.cpp multiplies each product by a scale of its matrix, which nvfp4 needs; others ignore it, or parts of it (measured)."""
REORDERED = "prune/depth with `layers` that keep the order, or quantize/gptq"


def unsupported(config: Mapping[str, Any]) -> Refusal | None:
    """Return the reason why llama.cpp would compute other results than transformers, or None.

    config: a transformers configuration as a dictionary.
    """
    config = with_layer_lists(config)
    kind, window = config.get("model_type"), attended(config)
    if window is not None and window < SHORTEST:
        got = f"a sliding window of {window} tokens, which llama.cpp ignores in this family"
        return Refusal(got, "quantize/gptq")
    usual = with_layer_lists({"model_type": kind, "num_hidden_layers": layer_count(config)})
    for name in LAYER_LISTS:
        values = list(config.get(name) or ())[: layer_count(config)]
        if name in usual and _plain(values) != _plain(usual[name]):
            return Refusal(
                f"its {name} are not in the order that llama.cpp takes for granted ({_shown(values)})", REORDERED
            )
    if kind in NARROW_HEADS and not _scaled_as_expected(config, NARROW_HEADS[kind]):
        return Refusal("its attention is not scaled by the head size, as llama.cpp assumes", "quantize/gptq")
    heads, width = int(config.get("num_attention_heads") or 0), int(config.get("hidden_size") or 0)
    if kind in EVEN_HEADS and heads * int(config.get("head_dim") or 0) not in (0, width):
        return Refusal(
            f"its {heads} heads of {config['head_dim']} do not add up to the hidden size of {width}, and llama.cpp assumes so in this family",
            "quantize/gptq, or prune/width in place of prune/heads or prune/hidden",
        )
    biases = [name for name in BIASES if kind in UNBIASED and config.get(name)]
    if biases:
        return Refusal(
            f"its layers have biases ({', '.join(biases)}), which llama.cpp does not read in this family",
            "quantize/gptq, or prune/flap with compensate=false",
        )
    return _feed_forward(config)


def _plain(values: list[Any]) -> list[Any]:
    """Return the values with 0 and 1 as truth values."""
    return [bool(value) if isinstance(value, int) else value for value in values]


def _shown(values: list[Any]) -> str:
    return ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")


def _scaled_as_expected(config: Mapping[str, Any], layers: int) -> bool:
    """Return True if Gemma's attention has the scale that llama.cpp derives from its sizes."""
    scale, head = config.get("query_pre_attn_scalar", 256), config.get("head_dim", 256)
    narrow = int(config.get("hidden_size") or 0) / int(config.get("num_attention_heads") or 1)
    return bool(scale == (narrow if layer_count(config) == layers else head)) or "hidden_size" not in config


def _feed_forward(config: Mapping[str, Any]) -> Refusal | None:
    """Return what llama.cpp does not know of a model's blocks, or None."""
    kind = config.get("model_type")
    if kind == "gpt2" and config.get("n_inner") not in (None, 4 * int(config.get("n_embd") or 0)):
        return Refusal(
            f"n_inner is {config['n_inner']}, and the converter assumes four times n_embd", "keep the model dense"
        )
    if kind == "gpt2" and config.get("scale_attn_by_inverse_layer_idx"):
        return Refusal("each layer scales its attention by its own index", "keep the model dense")
    if config.get("mlp_only_layers") or (config.get("decoder_sparse_step") or 1) != 1:
        return Refusal("some layers have no experts, and llama.cpp expects them in every layer", "keep the model dense")
    if kind == "qwen3_moe" and "hidden_size" in config and not config.get("norm_topk_prob", False):
        return Refusal(
            "its experts' weights do not sum to 1 (norm_topk_prob), and llama.cpp's do", "keep the model dense"
        )
    return None


def attended(config: Mapping[str, Any]) -> int | None:
    """Longest context in tokens that llama.cpp computes as transformers does; None: no limit.

    Beyond the window, transformers' layers no longer see the first tokens and llama.cpp's do.
    """
    window = config.get("sliding_window")
    if config.get("model_type") not in UNWINDOWED or not window:
        return None
    if not config.get("use_sliding_window", config["model_type"] not in OFF_BY_DEFAULT) or "sliding_attention" not in (
        config.get("layer_types") or ["sliding_attention"]
    ):
        return None
    return int(window) if window < (config.get("max_position_embeddings") or float("inf")) else None
