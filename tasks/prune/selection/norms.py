"""Correction of norms and embedding, which depend on the number of channels.

An RMS norm divides by the root mean square over its channels.  Without some of them this is another number, by nearly the same factor at
every token; the norm's gain is multiplied with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.prune.selection.copying import axes_of
from tasks.prune.selection.layers import Reading
from tasks.shared.errors import TechniqueError
from tasks.shared.model.activations import collect
from tasks.shared.model.calibration import batches
from tasks.shared.model.layout import decoder_layers, find_layout
from tasks.shared.progress import track

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

PROBED = 4
"""Tokens on which the embedding's scale is measured."""
SCALE_ERROR = 0.01
"""Largest relative difference that rounding to bfloat16 explains."""
TINY = 1e-30
"""Mean square of channels that are all zero, in norms without an epsilon."""


@dataclass(frozen=True)
class Correction:
    """Factors that a narrower model was corrected with.

    gains: of each norm, by name.  embedding: of the embedding.
    """

    gains: Mapping[str, float]
    embedding: float


def hidden_norms(model: "PreTrainedModel") -> "dict[str, Module]":
    """Return the norms over all channels, by name, in the model's order."""
    return {name: part for name, part in model.named_modules() if axes_of(f"{name}.weight") == ("hidden",)}


def last_norm(model: "PreTrainedModel") -> "Module":
    """Return the norm before the head.

    Raises TechniqueError for a model without one.
    """
    layout = find_layout(model)
    found = [norm for name, norm in hidden_norms(model).items() if not layout.layer_weight.fullmatch(name)]
    if not found:
        raise TechniqueError(
            type(model).__name__, "no norm before its head", "model.norm, as in Llama", "prune/width or prune/depth"
        )
    return found[-1]


def gain_offset(name: str, norm: "Module") -> float:
    """Return what an RMS norm adds to its weights to get its gain: 0, or Gemma's 1.

    Raises TechniqueError for any other norm, such as one that subtracts the mean.
    """
    import torch

    weight = norm.get_parameter("weight").detach().float()
    probe = 1e3 * (1.5 + torch.arange(len(weight), device=weight.device).sin())[None, None]
    with torch.no_grad():
        found, plain = norm(probe).float(), probe * probe.square().mean().rsqrt()
    for offset in (0.0, 1.0):
        if torch.allclose(found, plain * (offset + weight), rtol=SCALE_ERROR, atol=SCALE_ERROR):
            return offset
    raise TechniqueError(
        name, f"{type(norm).__name__} is not an RMS norm: removing channels changes its output for the others",
        "norms that divide by the root mean square and multiply by a gain", "prune/width or prune/depth",
    )  # fmt: skip


def size_ratio(values: "Tensor", kept: "Tensor", epsilon: float) -> "Tensor":
    """Root mean square over the channels that stay, relative to that over all, at every token.

    values: (batch, length, hidden).  kept: (kept,), indices.  epsilon: of the norm, added to both mean squares.
    Returns (batch, length), float64.
    """
    squares, least = values.double().square(), max(epsilon, TINY)
    return ((squares[..., kept].mean(-1) + least) / (squares.mean(-1) + least)).sqrt()


def gain_factors(model: "PreTrainedModel", kept: "Tensor", reading: Reading) -> dict[str, float]:
    """Return the factor of each norm's gain with which its outputs change least.

    kept: (kept,), indices of the channels that stay.
    It is the mean of `size_ratio` over tokens, the least squares solution for outputs of the same size at every token.  A ratio of sums
    over tokens would be that of the few tokens with outlier activations.
    """
    import torch

    norms = hidden_norms(model)
    chosen = kept.to(model.device)

    def reduce(name: str, before: "Tensor", _: "Tensor", mask: "Tensor") -> "Tensor":
        return torch.stack([(size_ratio(before, chosen, epsilon_of(norms[name])) * mask).sum(), mask.sum().double()])

    passes = track(batches(*reading), "norms", -(-len(reading.ids) // reading.batch_size))
    sums = collect(model, passes, norms.items(), reduce)
    return {name: float(ratio / tokens) for name, (ratio, tokens) in sums.items()}


def epsilon_of(norm: Any) -> float:
    """Return the number that a norm adds to the mean square."""
    return float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0)))


def embedding_scale(small: "PreTrainedModel", model: "PreTrainedModel", kept: "Tensor") -> float:
    """Return the factor by which a narrower model's first layer gets too small an embedding.

    Gemma multiplies embeddings with the root of the hidden size.  Other families give 1.
    kept: (kept,), indices of the channels that stay.
    Raises TechniqueError if the first layer gets anything but the former channels times a factor.
    """
    import torch

    ids = torch.arange(min(PROBED, model.config.vocab_size), device=model.device)[None]
    now, given = (
        collect(each, [{"input_ids": ids}], [(0, decoder_layers(each)[0])], lambda _, before, __, ___: before)[0]
        for each in (small, model)
    )
    now, given = now.double(), given[..., kept].double()
    scale = float((given * now).sum() / now.square().sum())
    error = float((given - scale * now).norm() / given.norm())
    if not error < SCALE_ERROR:
        raise TechniqueError(
            type(model).__name__, f"the input of its first layer is not the embedding times a constant: they differ by {error:.0%}",
            "an embedding that is at most scaled by a constant", "prune/width or prune/depth",
        )  # fmt: skip
    return scale


def correct(small: "PreTrainedModel", model: "PreTrainedModel", kept: "Tensor", reading: Reading) -> Correction:
    """Scale a narrower model's gains and embedding in place to what they were in the whole one.

    kept: (kept,), indices of channels.
    A head that shares the embedding's weights is scaled with them; the last norm takes the factor back.
    Raises TechniqueError for norms that subtract a mean, and embeddings that are more than scaled.
    """
    import torch

    factors, scale = gain_factors(model, kept, reading), embedding_scale(small, model, kept)
    table, last = small.get_input_embeddings().get_parameter("weight"), last_norm(small)
    tied = small.get_output_embeddings().get_parameter("weight") is table
    with torch.no_grad():
        table.mul_(scale)
        for name, norm in hidden_norms(small).items():
            offset, weight = gain_offset(name, norm), norm.get_parameter("weight")
            weight.copy_((offset + weight) * factors[name] / (scale if tied and norm is last else 1.0) - offset)
    return Correction(factors, scale)
