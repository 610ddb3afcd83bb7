"""Sizes of source models, read from file headers and configurations."""

import json
import math
from pathlib import Path
from typing import Any

from tasks.shared.forecast import Dimensions, Size
from tasks.shared.model.gguf_files import read_gguf_header
from tasks.shared.model.sizes import parameter_count, weight_bytes

GUESSED_LAYERS = 24
GUESSED_OUTER = 0.2
"""Share of the parameters in embedding and head if the configuration does not name their sizes."""


def size_of(path: Path) -> Size:
    """Return the size of a model folder or GGUF file.

    Raises ModelError if the path holds no weights.
    """
    return _gguf_size(path) if path.is_file() else _folder_size(path)


def _folder_size(folder: Path) -> Size:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = {**config, **(config.get("text_config") or {})}
    tied = 1 if config.get("tie_word_embeddings", True) else 2
    shape = Dimensions.from_config(config)
    return _checked(parameter_count(folder), weight_bytes(folder), tied * shape.vocabulary * shape.width, shape)


def _gguf_size(file: Path) -> Size:
    header = read_gguf_header(file)
    counts = {name: math.prod(shape) for name, shape in header.tensors.items()}
    outer = counts.get("token_embd.weight", 0) + counts.get("output.weight", 0)

    def value(name: str) -> int:
        found = header.fields.get(f"{header.architecture}.{name}", 0)
        return max(found, default=0) if isinstance(found, tuple) else found

    width = value("embedding_length")
    config = {
        "hidden_size": width,
        "num_hidden_layers": value("block_count"),
        "intermediate_size": value("feed_forward_length"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "head_dim": value("attention.key_length"),
        "vocab_size": counts.get("token_embd.weight", 0) // max(1, width),
        "num_experts": value("expert_count"),
        "moe_intermediate_size": value("expert_feed_forward_length"),
    }
    return _checked(sum(counts.values()), weight_bytes(file), outer, Dimensions.from_config(config))


def _checked(parameters: int, size: int, outer: int, shape: Dimensions) -> Size:
    """Return the size; guess its shape if the configuration names no layers or no width."""
    if not (shape.layers and shape.width):
        width = int((parameters / (12 * GUESSED_LAYERS)) ** 0.5)
        return Size(
            parameters,
            size,
            GUESSED_OUTER * parameters,
            Dimensions(GUESSED_LAYERS, width, 4 * width, 1, width, width, 0),
        )
    return Size(parameters, size, min(outer, parameters), shape)
