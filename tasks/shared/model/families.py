"""Families of models by their configuration, before anything is loaded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.shared.errors import ModelError, TechniqueError
from tasks.shared.mixtures import expert_count
from tasks.shared.model.gguf_files import read_gguf_header
from tasks.shared.model.layout import layer_count
from tasks.shared.technique import ChecksFamily

TITLES: Mapping[str, str] = {
    "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma2": "Gemma 2", "gemma3_text": "Gemma 3", "phi3": "Phi-3",
    "smollm3": "SmolLM3", "olmo2": "OLMo 2", "granite": "Granite", "gpt_neox": "GPT-NeoX", "gpt2": "GPT-2", "mixtral": "Mixtral", "qwen3_moe": "Qwen3-MoE",
}  # fmt: skip
"""Families that the tests hold to docs/families.md, by `model_type`."""
ROUTED = frozenset(
    {
        "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo", "granitemoe", "granitemoeshared", "phimoe", "gpt_oss", "minimax_m2",
        "deepseek_v2", "deepseek_v3", "glm4_moe", "dots1", "solar_open", "ernie4_5_moe",
    }
)  # fmt: skip
"""Mixtures whose routers the tests have seen with fewer experts."""
CONV1D = frozenset({"gpt2", "openai-gpt"})
"""Families whose projections are transformers' Conv1D, which is no torch.nn.Linear and has its axes the other way round."""
FUSED = frozenset({"phi3", "phi", "gpt_neox", "gpt_neox_japanese", "falcon", "bloom", "mpt", "gpt_bigcode"})
"""Families with query, key and value in one projection."""
WHOLE_HEADS = frozenset(
    {"llama", "gemma2", "gemma3_text", "gpt_neox", "arcee", "cwm", "hyperclovax", "jais2", "minicpm3", "vaultgemma"}
)
"""Families whose configuration refuses a number of query heads that does not divide the hidden size, even if the head size is given."""
CENTERED = frozenset(
    {
        "gpt_neox", "gpt_neox_japanese", "cohere", "cohere2", "cohere2_moe", "falcon", "bloom", "mpt", "gpt_bigcode", "jais2", "nemotron", "olmo",
        "persimmon", "phi", "phimoe", "stablelm", "starcoder2",
    }
)  # fmt: skip
"""Families whose norms subtract the mean over all channels (LayerNorm), which changes for each channel if another one goes."""
JOINT_NORMS = frozenset({"olmo2", "olmo3", "olmo_hybrid", "flex_olmo", "minimax_m2"})
"""Families that normalize the queries, and the keys, of all heads together."""
ATTENTION_BIAS = frozenset(
    {
        "llama", "arcee", "cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "granite", "granitemoe", "hyperclovax", "jais2", "olmo",
        "olmo2", "olmo3", "phimoe", "qwen3", "qwen3_moe", "smollm3", "vaultgemma",
    }
)  # fmt: skip
"""Families whose `attention_bias` gives a bias to the last projection of attention, too."""
FEED_FORWARD_BIAS = frozenset(
    {"llama", "arcee", "cwm", "granite", "helium", "hyperclovax", "jais2", "seed_oss", "smollm3"}
)
"""Families whose `mlp_bias` gives a bias to the last projection of the feed-forward block, too."""
ALWAYS_BIASED = frozenset({"gpt_neox"})
"""Families whose feed-forward block has biases that no setting takes away."""
NARROW_HEADS = {"gemma2": 46, "gemma3_text": 62}
"""Number of layers at which llama.cpp takes hidden / heads instead of the head size to scale Gemma's attention (27B)."""
GGUF_TYPES = {"gemma3": "gemma3_text", "gptneox": "gpt_neox", "qwen3moe": "qwen3_moe"}
"""llama.cpp's name of an architecture -> `model_type`, where they differ."""


def title(config: Mapping[str, Any]) -> str:
    """Name of the configuration's family, for messages."""
    kind = str(config.get("model_type", "unknown"))
    return TITLES.get(kind, kind)


def is_mixture(config: Mapping[str, Any]) -> bool:
    """Return True for a mixture of experts."""
    return expert_count(config) > 1


def has_parts(config: Mapping[str, Any]) -> bool:
    """Return True for a model of several parts, such as an image encoder and a language model."""
    return "text_config" in config


def family_config(path: Path) -> dict[str, Any]:
    """Read the configuration of a model folder or, as far as it says, of a GGUF file.

    Defaults that depend on the layer are filled in.  Empty for a path that is neither.
    """
    if path.is_file():
        return with_layer_lists(_gguf_config(path))
    try:
        found = json.loads((path / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return with_layer_lists(found) if isinstance(found, dict) else {}


def _gguf_config(file: Path) -> dict[str, Any]:
    try:
        header = read_gguf_header(file)
    except (OSError, ModelError):
        return {}
    kind = header.architecture or "unknown"
    names = {
        "num_hidden_layers": f"{kind}.block_count",
        "num_experts": f"{kind}.expert_count",
        "num_experts_per_tok": f"{kind}.expert_used_count",
    }
    found = {name: header.fields[key] for name, key in names.items() if key in header.fields}
    return {"model_type": GGUF_TYPES.get(kind, kind), **found}


def with_layer_lists(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with the per-layer lists that transformers fills in on loading."""
    total, found = layer_count(config), dict(config)
    lists: dict[str, list[Any]] = {}
    match config.get("model_type"):
        case "gemma2":
            lists = {"layer_types": ["full_attention" if index % 2 else "sliding_attention" for index in range(total)]}
        case "gemma3_text":
            period = config.get("sliding_window_pattern") or 6
            lists = {"layer_types": ["sliding_attention" if (index + 1) % period else "full_attention" for index in range(total)]}  # fmt: skip
        case "smollm3":
            period = config.get("no_rope_layer_interval") or 4
            lists = {"no_rope_layers": [int((index + 1) % period != 0) for index in range(total)]}
    return found | {name: values for name, values in lists.items() if not config.get(name)}


def check_family(technique: ChecksFamily, config: Mapping[str, Any], where: str) -> None:
    """Raise TechniqueError if the technique refuses models of this configuration."""
    refusal = technique.refuses(config)
    if refusal is not None:
        raise TechniqueError(
            where, f"a {title(config)} model: {refusal.reason}", "a model that docs/families.md lists", refusal.instead
        )
