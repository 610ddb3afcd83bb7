"""Importance of the channels of the hidden state, by what their readers make of them.

Readers are the attention and feed-forward blocks of every layer, and the head.  A new criterion is an entry in `CHANNEL_CRITERIA`, and
its name in `Criterion`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.prune.selection.activations import channel_sums, energy, gate_gradients, gated_input, gated_output
from tasks.prune.selection.copying import axes_of
from tasks.prune.selection.importance import DIFFERENTIATED, MEASURED, Criterion
from tasks.prune.selection.layers import Reading
from tasks.prune.selection.norms import last_norm
from tasks.shared.model.activations import collect
from tasks.shared.model.calibration import batches
from tasks.shared.model.layout import decoder_layers, find_layout, part_of
from tasks.shared.progress import track

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

ROWS = 8192
"""Rows of a matrix that are squared at a time, in float64: heads have a row per token of the vocabulary."""


@dataclass(frozen=True)
class Reader:
    """A part of the model that multiplies the channels with its weights.

    row: index of its layer; for the head, the number of layers.
    module: a block, which takes the channels; for the head, the last norm, which gives them.
    gives: True for that norm.
    weights: (..., hidden) each.
    """

    row: int
    module: "Module"
    gives: bool
    weights: "tuple[Tensor, ...]"


@dataclass(frozen=True)
class Channels:
    """Tensors at one reader that a criterion may read, (hidden,) each, float64.

    energy: sum over tokens of the squares of what is read.  deviations: the same of its differences from its mean.
    squares, magnitudes: sums over the reader's rows of its weights' squares and magnitudes.
    slopes: sums over conversations of the squared gradient by a factor on each channel.
    draws: uniform random numbers.
    """

    energy: "Tensor"
    deviations: "Tensor"
    squares: "Tensor"
    magnitudes: "Tensor"
    slopes: "Tensor"
    draws: "Tensor"


def share(values: "Tensor") -> "Tensor":
    """Divide by the sum, so that readers of different sizes count alike.

    values: (hidden,), none negative.  Returns the same shape; zeros if all are.
    """
    total = values.sum()
    return values / total if total > 0 else values


CHANNEL_CRITERIA: Mapping[Criterion, Callable[[Channels], "Tensor"]] = {
    "activation": lambda at: at.energy,
    "contribution": lambda at: share(at.energy * at.squares),
    "fluctuation": lambda at: share(at.deviations * at.squares),
    "wanda": lambda at: share(at.energy.clamp(min=0).sqrt() * at.magnitudes),
    "taylor": lambda at: at.slopes,
    "magnitude": lambda at: at.squares.sqrt(),
    "random": lambda at: at.draws,
}
"""Scores (hidden,) at one reader, by criterion; the channels with the highest sums over all readers stay.

activation: Muralidharan et al. 2024, arXiv 2407.14679, section 2.2, with the sum of squares as aggregation over tokens.
contribution: the error of the reader's output if this channel alone goes, as a share of all channels' errors.
"""


def readers_of(model: "PreTrainedModel") -> list[Reader]:
    """Return all readers: two per layer, then the head."""
    layout, layers = find_layout(model), decoder_layers(model)
    found = []
    for row, layer in enumerate(layers):
        for place in (layout.attention, layout.feed_forward_out.rpartition(".")[0]):
            block = part_of(layer, place)
            weights = [weight for name, weight in block.named_parameters() if axes_of(name)[-1:] == ("hidden",)]
            found.append(Reader(row, block, False, tuple(weight for weight in weights if weight.dim() > 1)))
    return [*found, Reader(len(layers), last_norm(model), True, (model.get_output_embeddings().weight,))]


def channel_scores(model: "PreTrainedModel", criterion: Criterion, reading: Reading, seed: int) -> "list[Tensor]":
    """Return the importance of all channels at every layer and, last, at the head.

    Returns (hidden,) each, float64, on the CPU.
    reading: calibration text; read by criteria of `MEASURED` and `DIFFERENTIATED` only.
    seed: of criterion "random".
    """
    import torch

    readers, width = readers_of(model), model.config.hidden_size
    empty = [torch.empty(0)] * len(readers)
    energies = (
        channel_energies(model, readers, reading) if criterion in MEASURED else [(empty[0], empty[0])] * len(readers)
    )
    slopes = empty
    if criterion in DIFFERENTIATED:
        hooks = [(gated_output if reader.gives else gated_input)(reader.module) for reader in readers]
        slopes = gate_gradients(model, width, hooks, *reading)
    draws = torch.rand(len(readers), width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sums = torch.zeros(readers[-1].row + 1, width, dtype=torch.float64)
    for place, reader in enumerate(readers):
        squares, magnitudes = column_sums(reader.weights, width)
        at = Channels(*energies[place], squares, magnitudes, slopes[place], draws[place])
        sums[reader.row] += CHANNEL_CRITERIA[criterion](at)
    return list(sums)


def channel_energies(
    model: "PreTrainedModel", readers: list[Reader], reading: Reading
) -> "list[tuple[Tensor, Tensor]]":
    """Return sums of squares of what each reader reads, and of its differences from its mean.

    Returns (hidden,) twice, float64, over the tokens without padding.
    """
    import torch

    def reduce(place: int, before: "Tensor", after: "Tensor", mask: "Tensor") -> "Tensor":
        values = after if readers[place].gives else before
        return torch.stack([energy(values, mask, width), channel_sums(values, mask)])

    passes = track(batches(*reading), "activations", -(-len(reading.ids) // reading.batch_size))
    width = model.config.hidden_size
    sums = collect(
        model,
        passes,
        ((place, reader.module) for place, reader in enumerate(readers)),
        reduce,
    )
    tokens, found = sum(map(len, reading.ids)), []
    for place in range(len(readers)):
        squares, total = sums[place]
        found.append((squares, (squares - total.square() / tokens).clamp(min=0)))
    return found


def column_sums(weights: "tuple[Tensor, ...]", width: int) -> "tuple[Tensor, Tensor]":
    """Return the sums over all rows of the squares and of the magnitudes of weights.

    weights: (..., width) each.  Returns (width,) twice, float64, on the CPU.
    """
    import torch

    squares, magnitudes = torch.zeros(2, width, dtype=torch.float64)
    for weight in weights:
        for rows in weight.detach().reshape(-1, width).split(ROWS):
            part = rows.double().abs()
            squares += part.square().sum(0).cpu()
            magnitudes += part.sum(0).cpu()
    return squares, magnitudes
