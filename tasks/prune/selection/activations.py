"""Importance of channels, heads and neurons, by their activations on calibration text.

Source: Muralidharan et al. 2024, arXiv 2407.14679, section 2.2: heads by their outputs, neurons by theirs, channels by the outputs
of the norms.  Unlike there, tokens are aggregated as a sum of squares.
"""

from typing import TYPE_CHECKING, Any

from tasks.prune.selection.picks import Scores
from tasks.prune.selection.shape import Shape
from tasks.shared.errors import TechniqueError
from tasks.shared.model.activations import collect
from tasks.shared.model.calibration import batches
from tasks.shared.model.layers import decoder_layers
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

    Raises TechniqueError for layers without self_attn.o_proj or mlp.down_proj (mixtures of experts).
    """
    import torch

    points: list[tuple[tuple[str, int], Module]] = []
    for row, layer in enumerate(decoder_layers(model)):
        parts: Any = layer
        if not (hasattr(parts.self_attn, "o_proj") and hasattr(parts.mlp, "down_proj")):
            raise TechniqueError(
                type(layer).__name__, "no self_attn.o_proj or no mlp.down_proj", "a dense decoder layer", "leave its width as it is"
            )  # fmt: skip
        points += [(("heads", row), parts.self_attn.o_proj), (("neurons", row), parts.mlp.down_proj)]
        points += [(("hidden", 0), getattr(parts, name)) for name in NORMS if hasattr(parts, name)]
    sizes = {"hidden": shape.hidden, "heads": shape.heads, "neurons": shape.intermediate}

    def reduce(point: tuple[str, int], before: "Tensor", after: "Tensor", mask: "Tensor") -> "Tensor":
        return energy(after if point[0] == "hidden" else before, mask, sizes[point[0]])

    passes = track(batches(ids, batch_size, pad_id), "activations", -(-len(ids) // batch_size))
    sums = collect(model, passes, points, reduce)
    heads, neurons = (torch.stack([sums[kind, row] for row in range(shape.layers)]) for kind in ("heads", "neurons"))
    return Scores(sums["hidden", 0], heads, neurons)
