"""A student's configuration and weights, filled from its teacher's."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tasks.prune.selection.picks import Picks
from tasks.prune.selection.shape import Shape, shape_of
from tasks.shared.errors import TechniqueError
from tasks.shared.model.layout import find_layout, kept_layers_config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

NORM_NAMES = (
    "norm",
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
AXES: Mapping[str, tuple[str, ...]] = {
    "embed_tokens.weight": ("", "hidden"),
    "lm_head.weight": ("", "hidden"),
    **{f"{name}.weight": ("hidden",) for name in NORM_NAMES},
    **{"q_proj.weight": ("heads", "hidden"), "q_proj.bias": ("heads",)},
    **{f"{name}_proj.weight": ("kv_heads", "hidden") for name in "kv"},
    **{f"{name}_proj.bias": ("kv_heads",) for name in "kv"},
    **{"o_proj.weight": ("hidden", "heads"), "o_proj.bias": ("hidden",)},
    **{"q_norm.weight": ("heads",), "k_norm.weight": ("kv_heads",)},
    **{f"{name}_proj.weight": ("neurons", "hidden") for name in ("gate", "up")},
    **{f"{name}_proj.bias": ("neurons",) for name in ("gate", "up")},
    **{"down_proj.weight": ("hidden", "neurons"), "down_proj.bias": ("hidden",)},
}
"""Kinds of a weight's axes, by the end of its name; an axis without a kind is kept whole, and so is any other weight."""
HEAD_NORMS = ("q_norm.weight", "k_norm.weight")
"""Norms over all heads at once (OLMo 2), or over each head by itself (Qwen3, Gemma 3), which is kept whole."""
SHOWN = 5


def student_config(teacher: Any, shape: Shape, origins: Sequence[int]) -> Any:
    """Return the teacher's configuration with the student's sizes.

    shape: the student's sizes.
    origins: for each layer of the student, the teacher layer whose type it takes (sliding or full attention).

    The head size stays the teacher's for any width, since rotary embeddings rotate its channels in pairs.
    """
    config = copy.deepcopy(teacher)
    changes = kept_layers_config(teacher.to_dict(), origins)
    if replace(shape, layers=0) != replace(shape_of(teacher), layers=0):
        changes |= {
            "hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
        }  # fmt: skip
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def take(weight: "Tensor", name: str, picks: Picks) -> "Tensor":
    """Select the student's part of one of the teacher's weights.

    weight: (out, in) or (channels,).
    name: of the weight, which determines the axes to cut.
    """
    along, ending = picks.along(), ".".join(name.split(".")[-2:])
    if ending in HEAD_NORMS and weight.shape[0] == picks.head_dim:
        return weight
    for dimension, axis in enumerate(AXES.get(ending, ())):
        if axis:
            weight = weight.index_select(dimension, along[axis].to(weight.device))
    return weight


def fill(student: "PreTrainedModel", teacher: "PreTrainedModel", layers: Sequence[int], picks: Sequence[Picks]) -> int:
    """Copy the teacher's weights into the student in place; return the number of weights copied.

    layers: the teacher's layer for each of the student's layers.
    picks: selected channels, heads and neurons, by teacher layer.
    Raises TechniqueError for weights whose shape does not fit afterwards.
    """
    import torch

    given, wanted, layout = teacher.state_dict(), student.state_dict(), find_layout(teacher)
    found: dict[str, Tensor] = {}
    for name in wanted:
        match = layout.layer_weight.fullmatch(name)
        if match and int(match[1]) >= len(layers):
            continue
        origin = layers[int(match[1])] if match else 0
        source = f"{layout.layers}.{origin}.{match[2]}" if match else name
        found[name] = take(given[source], name, picks[origin])
    odd = [name for name, weight in found.items() if weight.shape != wanted[name].shape]
    if odd:
        shown = ", ".join(
            f"{name} ({tuple(found[name].shape)} for {tuple(wanted[name].shape)})" for name in odd[:SHOWN]
        )
        raise TechniqueError(
            type(teacher).__name__,
            f"{len(odd)} weights cannot be cut in this way: {shown}",
            "a dense decoder of the Llama, Mistral, Qwen or Gemma families",
            "keep the teacher's width and select layers only",
        )
    with torch.no_grad():
        for name, weight in found.items():
            wanted[name].copy_(weight)
    return sum(parameter.numel() for name, parameter in student.named_parameters() if name in found)
