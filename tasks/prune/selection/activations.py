"""Importance of channels, heads and neurons, by their activations on calibration text.

Source: Muralidharan et al. 2024, arXiv 2407.14679, section 2.2: heads by their outputs, neurons by theirs, channels by the outputs
of the norms.  Unlike there, tokens are aggregated as a sum of squares.
"""

from typing import TYPE_CHECKING

from tasks.prune.selection.picks import Scores
from tasks.prune.selection.shape import Shape
from tasks.shared.errors import TechniqueError
from tasks.shared.model.activations import collect
from tasks.shared.model.calibration import batches
from tasks.shared.model.layout import decoder_layers, find_layout, part_of
from tasks.shared.progress import track

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm")


def energy(values: "Tensor", mask: "Tensor", parts: int) -> "Tensor":
    """Sum of squares per part, over the tokens without padding.

    values: (batch, length, parts * width).
    mask: (batch, length), 1 on real tokens.
    Returns (parts,), float64.
    """
    squares = values.double().square() * mask[..., None]
    return squares.view(-1, parts, values.shape[-1] // parts).sum((0, 2))


def measure(model: "PreTrainedModel", shape: Shape, ids: list[list[int]], batch_size: int, pad_id: int) -> Scores:
    """Score all channels, heads and neurons on conversations, one forward pass per batch.

    Raises TechniqueError for layers without a last projection of each block (mixtures of experts).
    """
    import torch

    points: list[tuple[tuple[str, int], Module]] = []
    layout = find_layout(model)
    for row, layer in enumerate(decoder_layers(model)):
        last = part_of(layer, layout.attention_out), part_of(layer, layout.feed_forward_out)
        if None in last:
            raise TechniqueError(
                type(layer).__name__,
                f"no {layout.attention_out} or no {layout.feed_forward_out}",
                "a dense decoder layer",
                "leave its width as it is",
            )
        points += [(("heads", row), last[0]), (("neurons", row), last[1])]
        points += [(("hidden", 0), part_of(layer, name)) for name in NORMS if hasattr(layer, name)]
    sizes = {"hidden": shape.hidden, "heads": shape.heads, "neurons": shape.intermediate}

    def reduce(point: tuple[str, int], before: "Tensor", after: "Tensor", mask: "Tensor") -> "Tensor":
        return energy(after if point[0] == "hidden" else before, mask, sizes[point[0]])

    passes = track(batches(ids, batch_size, pad_id), "activations", -(-len(ids) // batch_size))
    sums = collect(model, passes, points, reduce)
    heads, neurons = (torch.stack([sums[kind, row] for row in range(shape.layers)]) for kind in ("heads", "neurons"))
    return Scores(sums["hidden", 0], heads, neurons)
