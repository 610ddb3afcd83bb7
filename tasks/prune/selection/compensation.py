"""Biases that keep the mean of what removed units gave.

Source: An et al. 2024, arXiv 2312.11983 (baseline bias compensation).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from tasks.prune.selection.activations import BlockAxis, last_projections
from tasks.prune.selection.picks import Picks
from tasks.shared.errors import TechniqueError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def removed_mean(weight: "Tensor", means: "Tensor", kept: "Tensor") -> "Tensor":
    """Mean over tokens of what removed inputs of a projection added to its output.

    weight: (out, in).  means: (in,), of the inputs.  kept: (kept,), indices of the inputs that stay.
    Returns (out,), float64.
    """
    gone = means.double().clone()
    gone[kept] = 0
    return weight.double() @ gone


def add_biases(model: "PreTrainedModel", settings: Iterable[str]) -> None:
    """Turn on settings that give layers biases, and add those as zeros, in place.

    settings: names in the configuration, such as `attention_bias`.  Biases that the model has stay as they are.
    """
    import torch
    from transformers import AutoModelForCausalLM

    for name in settings:
        setattr(model.config, name, True)
    with torch.device("meta"):
        wanted = AutoModelForCausalLM.from_config(model.config)
    for name, parameter in wanted.named_parameters():
        place, _, kind = name.rpartition(".")
        part = model.get_submodule(place)
        if kind == "bias" and part.bias is None:
            part.bias = torch.nn.Parameter(torch.zeros(parameter.shape, dtype=model.dtype, device=model.device))


def compensate(
    small: "PreTrainedModel",
    model: "PreTrainedModel",
    picks: Sequence[Picks],
    means: "Mapping[BlockAxis, Sequence[Tensor]]",
) -> None:
    """Add the mean of what removed units gave to the biases of the last projections, in place.

    small: the model without these units, with biases.  model: the one with them.
    picks: units kept, by layer.  means: of what enters the last projections of `model`, (columns,) for each layer, by axis.
    Raises TechniqueError for a last projection without a bias.
    """
    import torch

    for axis, layers in means.items():
        lasts, before = last_projections(small, axis), last_projections(model, axis)
        for layer, mean in enumerate(layers):
            bias, kept = lasts[layer].bias, picks[layer].along().get(axis)
            if not isinstance(bias, torch.Tensor):
                raise TechniqueError(
                    f"layer {layer}", f"the last projection of its {axis} has no bias", "a family whose biases a setting turns on",
                    "compensate=false",
                )  # fmt: skip
            if kept is not None:
                added = removed_mean(before[layer].get_parameter("weight").detach().cpu(), mean, kept)
                with torch.no_grad():
                    bias += added.to(bias)
