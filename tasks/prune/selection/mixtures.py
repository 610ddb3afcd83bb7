"""Surgery on a mixture of experts: a smaller model with some experts of every layer."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tasks.shared.errors import TechniqueError
from tasks.shared.mixtures import expert_count, kept_experts_config
from tasks.shared.model.layout import decoder_layers, find_layout

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

SHOWN = 5


def find_mixtures(model: "PreTrainedModel") -> "dict[int, Module]":
    """Return the stacked experts of each layer that has any, by layer.

    Experts that all tokens share are none of them.
    Raises TechniqueError if no layer has stacked experts.
    """
    found: dict[int, Module] = {}
    total = expert_count(model.config.to_dict())
    for index, layer in enumerate(decoder_layers(model)):
        for part in layer.modules():
            if any(weight.dim() == 3 and len(weight) == total for weight in part.parameters(recurse=False)):
                found[index] = part
    if not found:
        raise TechniqueError(
            type(model).__name__,
            f"no layer has {total} experts in stacked tensors",
            "a mixture that docs/structured-pruning.md lists",
            "prune/depth",
        )
    return found


def keep_experts(model: "PreTrainedModel", kept: "Mapping[int, Tensor]") -> "PreTrainedModel":
    """Return a model in float32 with these experts only; `model` stays as it is.

    Every tensor that has an entry per expert is cut: weights and biases of the experts, and of the router its rows, biases and
    corrections.  All other tensors are copied.

    kept: (kept,), ascending indices of the experts that stay, by layer; equally many in each.
    Raises TechniqueError for a tensor that does not fit the model which the configuration then describes.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config, count = copy.deepcopy(model.config), len(next(iter(kept.values())))
    for name, value in kept_experts_config(config.to_dict(), count).items():
        setattr(config, name, value)
    small = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    given, places, layout = model.state_dict(), small.state_dict(), find_layout(model)
    odd = [f"{name} is in one model only" for name in sorted(given.keys() ^ places.keys())]
    for name in given.keys() & places.keys():
        weight, place = given[name], places[name]
        match = layout.layer_weight.fullmatch(name)
        axes = [axis for axis in range(weight.dim()) if weight.shape[axis] != place.shape[axis]]
        if match and int(match[1]) in kept and len(axes) == 1:
            weight = weight.index_select(axes[0], kept[int(match[1])].to(weight.device))
        if weight.shape == place.shape:
            with torch.no_grad():
                place.copy_(weight)
        else:
            odd.append(f"{name} ({tuple(given[name].shape)} for {tuple(place.shape)})")
    if odd:
        raise TechniqueError(
            type(model).__name__,
            f"{len(odd)} tensors cannot be cut in this way: {', '.join(odd[:SHOWN])}",
            "an axis with an entry per expert",
            "prune/depth",
        )
    small.generation_config = model.generation_config
    return small
