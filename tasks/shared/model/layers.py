"""Location of the decoder layers in a model."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import TechniqueError

if TYPE_CHECKING:
    from torch.nn import ModuleList
    from transformers import PreTrainedModel

LAYOUT = "model.layers"
LAYER_WEIGHT = re.compile(rf"{re.escape(LAYOUT)}\.(\d+)\.(.+)")
"""Name of a layer's weight; groups: index of the layer, and name within the layer."""
PER_LAYER_CONFIG = ("layer_types", "no_rope_layers", "mlp_layer_types")
"""Configuration lists with one entry per decoder layer."""


def find_layers(model: "PreTrainedModel") -> Sequence[Any]:
    """Return the decoder layers; empty unless the layout is that of Llama, Mistral and Qwen."""
    found: Sequence[Any] = getattr(getattr(model, "model", None), "layers", None) or ()
    return found


def decoder_layers(model: "PreTrainedModel") -> "ModuleList":
    """Return the decoder layers as a list that can be edited.

    Raises TechniqueError if `find_layers` finds none or attention has no layer index.
    """
    from torch.nn import ModuleList

    layers = find_layers(model)
    if isinstance(layers, ModuleList) and all(
        hasattr(getattr(layer, "self_attn", None), "layer_idx") for layer in layers
    ):
        return layers
    raise TechniqueError(
        type(model).__name__,
        f"decoder layers not found; its parts: {', '.join(name for name, _ in model.named_children())}",
        f"model.{LAYOUT} as a ModuleList whose items have self_attn.layer_idx (Llama, Mistral, Qwen families)",
        "choose a model of these families, or another pruning technique",
    )
