"""Matrices whose weights may be masked, and the lowest of their scores."""

from typing import TYPE_CHECKING

from tasks.shared.errors import TechniqueError
from tasks.shared.model.layout import decoder_layers
from tasks.shared.model.widths import shortened

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel


def matrices_of(model: "PreTrainedModel") -> dict[str, "Module"]:
    """Return the pruned modules, by name: every linear layer inside the decoder layers.

    Embedding and head are outside of these, also where they are one tensor.
    Raises TechniqueError if the layers have matrices besides, which would stay dense unnoticed.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    places = {id(part): name for name, part in model.named_modules()}
    found: dict[str, Module] = {}
    loose: list[str] = []
    for layer in decoder_layers(model):
        for part in layer.modules():
            if isinstance(part, torch.nn.Linear | Conv1D):
                found[places[id(part)]] = part
            else:
                loose += [
                    f"{places[id(part)]}.{name}"
                    for name, weight in part.named_parameters(recurse=False)
                    if weight.dim() > 1
                ]
    if loose:
        raise TechniqueError(
            type(model).__name__, f"{len(loose)} matrices that are not linear layers: {shortened(loose)}",
            "decoder layers of torch.nn.Linear", "a family that docs/families.md lists, or prune/depth",
        )  # fmt: skip
    return found


def view_of(module: "Module") -> "Tensor":
    """Return a module's weight as (out, in), in the memory of the weight itself."""
    from transformers.pytorch_utils import Conv1D

    weight: Tensor = module.get_parameter("weight").detach()
    return weight.T if isinstance(module, Conv1D) else weight


def lowest(scores: "Tensor", count: int) -> "Tensor":
    """Return where the `count` lowest scores of each row are; of equal ones, the first.

    scores: (rows, n), finite.  Returns (rows, n), bool, with exactly `count` of each row.
    """
    import torch

    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    edge = scores.kthvalue(count, dim=-1, keepdim=True).values
    below, equal = scores < edge, scores == edge
    missing = count - below.sum(-1, keepdim=True)
    return below | (equal & (equal.cumsum(-1) <= missing))


def lowest_of_matrix(scores: "Tensor", count: int) -> "Tensor":
    """Return where the `count` lowest scores of a whole matrix are.

    scores: (rows, columns).  Returns the same shape, bool.
    """
    return lowest(scores.reshape(1, -1), count).view(scores.shape)
