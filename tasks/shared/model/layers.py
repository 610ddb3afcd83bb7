"""Where a family of models keeps its decoder layers."""

from typing import TYPE_CHECKING

from tasks.shared.errors import TechniqueError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

if TYPE_CHECKING:
    from torch.nn import ModuleList
    from transformers import PreTrainedModel


LAYOUT = "model.model.layers"


def decoder_layers(model: "PreTrainedModel") -> "ModuleList":
    """The decoder's layers.  Raises TechniqueError for a layout other than that of the Llama, Mistral and Qwen families."""
    from torch.nn import ModuleList

    layers = getattr(getattr(model, "model", None), "layers", None)
    if isinstance(layers, ModuleList) and all(
        hasattr(getattr(layer, "self_attn", None), "layer_idx") for layer in layers
    ):
        return layers
    raise TechniqueError(
        type(model).__name__,
        f"this model's layers are not where they are looked for; its parts: {', '.join(name for name, _ in model.named_children())}",
        f"{LAYOUT} as a ModuleList whose items have self_attn.layer_idx (Llama, Mistral, Qwen families)",
        "choose a model of these families, or another pruning technique",
    )


PER_LAYER_CONFIG = ("layer_types", "no_rope_layers", "mlp_layer_types")
"""Configuration lists with one entry per decoder layer."""
