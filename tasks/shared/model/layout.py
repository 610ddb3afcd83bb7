"""Layouts: places of decoder layers, their parts, and their per-layer settings."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import TechniqueError

if TYPE_CHECKING:
    from torch.nn import ModuleList
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Layout:
    """Places of a causal language model's parts, as dotted names.

    layers: list of decoder layers, in the model.
    attention: attention block, in a layer; it has a `layer_idx`.
    attention_out, feed_forward_out: last projection of each block, in a layer; its input is what heads and neurons give.
    positions: table of learned positions, in the model; empty if positions are rotary.
    """

    layers: str
    attention: str
    attention_out: str
    feed_forward_out: str
    positions: str = ""

    @cached_property
    def layer_weight(self) -> re.Pattern[str]:
        """Pattern of a layer's weight names; groups: index of the layer, name within the layer."""
        return re.compile(rf"{re.escape(self.layers)}\.(\d+)\.(.+)")

    def origin(self, taken: Sequence[int]) -> Callable[[str], str | None]:
        """Return a function from a weight's name to its name before layers were removed or moved.

        taken: layer that each of the layers was before; a layer beyond them is new, and its weights have no name before.
        """

        def before(name: str) -> str | None:
            found = self.layer_weight.fullmatch(name)
            if found is None:
                return name
            place = int(found[1])
            return f"{self.layers}.{taken[place]}.{found[2]}" if place < len(taken) else None

        return before

    def fits(self, model: "PreTrainedModel") -> bool:
        """Return True if the model keeps its layers here."""
        from torch.nn import ModuleList

        layers = part_of(model, self.layers)
        return isinstance(layers, ModuleList) and all(
            hasattr(part_of(layer, self.attention), "layer_idx") for layer in layers
        )

    def put_layers(self, model: "PreTrainedModel", layers: Sequence[Any]) -> None:
        """Replace the decoder layers in place, and number them for the cache."""
        from torch.nn import ModuleList

        parent, _, name = self.layers.rpartition(".")
        setattr(part_of(model, parent), name, ModuleList(layers))
        for position, layer in enumerate(layers):
            for part in (layer, part_of(layer, self.attention)):
                if hasattr(part, "layer_idx"):
                    part.layer_idx = position


LAYOUTS = (
    Layout("model.layers", "self_attn", "self_attn.o_proj", "mlp.down_proj"),
    Layout("gpt_neox.layers", "attention", "attention.dense", "mlp.dense_4h_to_h"),
    Layout("transformer.h", "attn", "attn.c_proj", "mlp.c_proj", positions="transformer.wpe"),
)
"""Llama and its many relatives; GPT-NeoX; GPT-2."""

LAYER_COUNTS = ("num_hidden_layers", "n_layer")
LAYER_LISTS = ("layer_types", "no_rope_layers", "mlp_layer_types")
"""Configuration lists with at least one entry per decoder layer."""
FIRST_LAYERS = ("max_window_layers", "first_k_dense_replace")
"""Configuration counts of first layers that differ from the others."""
SPARSE = ("mlp_only_layers", "decoder_sparse_step")
"""Layers without experts by index, and the step between layers with experts, in Qwen's mixtures."""


def part_of(module: Any, place: str) -> Any:
    """Return a part of a module by its dotted name, or None."""
    for name in place.split("."):
        module = getattr(module, name, None)
    return module


def find_layout(model: "PreTrainedModel") -> Layout:
    """Return the layout that fits the model.

    Raises TechniqueError if none does.
    """
    found = next((layout for layout in LAYOUTS if layout.fits(model)), None)
    if found is not None:
        return found
    places = " or ".join(f"{layout.layers} with {layout.attention}.layer_idx" for layout in LAYOUTS)
    raise TechniqueError(
        type(model).__name__,
        f"decoder layers not found; its parts: {', '.join(name for name, _ in model.named_children())}",
        f"{places} (docs/families.md)",
        "choose a model of these families, or a technique that changes no layers",
    )


def decoder_layers(model: "PreTrainedModel") -> "ModuleList":
    """Return the decoder layers.

    Raises TechniqueError if no layout fits.
    """
    found: ModuleList = part_of(model, find_layout(model).layers)
    return found


def kept_layers_config(config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return the settings that change if only some layers are kept, in this order.

    config: a transformers configuration as a dictionary.
    kept: indices of the layers, ascending unless layers are repeated.
    """
    total = layer_count(config)
    found: dict[str, Any] = {name: len(kept) for name in LAYER_COUNTS if name in config}
    for name in LAYER_LISTS:
        values = config.get(name)
        if isinstance(values, list | tuple) and len(values) >= total:
            found[name] = [values[index] for index in kept]
    for name in FIRST_LAYERS:
        if config.get(name) is not None:
            found[name] = sum(index < config[name] for index in kept)
    if any(name in config for name in SPARSE):
        named, step = set(config.get(SPARSE[0]) or ()), config.get(SPARSE[1]) or 1
        plain = [place for place, index in enumerate(kept) if index in named or (index + 1) % step]
        found |= {SPARSE[0]: plain, SPARSE[1]: 1}
    return found


def layer_count(config: Mapping[str, Any]) -> int:
    """Number of decoder layers in a configuration; 0 if it names none."""
    return next((int(config[name]) for name in LAYER_COUNTS if config.get(name)), 0)


def check_rebuilt(model: "PreTrainedModel") -> None:
    """Raise TechniqueError unless the configuration rebuilds the model's layers exactly.

    Compares names and shapes of weights, and the plain settings of each layer's modules (window, rotary embedding, scale), with
    those of a model built from the configuration without memory for weights.
    Raises TechniqueError at the first difference: the saved model would compute something else once reloaded.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        fresh = AutoModelForCausalLM.from_config(model.config)
    mine, built = ({name: tuple(weight.shape) for name, weight in each.named_parameters()} for each in (model, fresh))
    differences = [f"{name}: {mine.get(name)}, not {built.get(name)}" for name in mine.keys() | built.keys() if mine.get(name) != built.get(name)]  # fmt: skip
    for index, (layer, other) in enumerate(zip(decoder_layers(model), decoder_layers(fresh), strict=False)):
        others = dict(other.named_modules())
        for name, part in layer.named_modules():
            differences += [
                f"layer {index}, {name or type(part).__name__}.{setting}: {value}, not {getattr(others.get(name), setting, None)}"
                for setting, value in _plain_settings(part)
                if getattr(others.get(name), setting, None) != value
            ]
    if differences:
        raise TechniqueError(
            type(model).__name__,
            f"reloaded from its configuration, the model would differ: {'; '.join(sorted(differences)[:3])}",
            "a configuration that describes every layer",
            "keep all layers of this model",
        )


def _plain_settings(module: Any) -> list[tuple[str, Any]]:
    """Return a module's own settings that are numbers, words or None."""
    return [
        (name, value)
        for name, value in vars(module).items()
        if name != "training" and not name.startswith("_") and isinstance(value, bool | int | float | str | None)
    ]
