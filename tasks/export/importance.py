"""Which columns of a weight matter: the mean squared input of every linear layer on calibration conversations."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.shared.model.activations import collect
from tasks.shared.progress import track

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def input_energy(model: "PreTrainedModel", ids: Sequence[Sequence[int]]) -> dict[str, "Tensor"]:
    """Mean squared input per column, (in,) float32, of every linear layer, by the name of its weight.

    ids: token ids per row, read one row at a time without padding.  The error that a rounded weight makes in a layer's
    output is this times its own squared error, if inputs are uncorrelated: the diagonal of GPTQ's Hessian.
    """
    import torch

    linear = [
        (f"{name}.weight", module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
    ]
    rows = ({"input_ids": torch.tensor([list(row)])} for row in track(ids, "importance", len(ids)))
    sums = collect(
        model, rows, linear, lambda _, before, __, ___: before.float().square().flatten(0, -2).sum(0)
    )  # (in,)
    tokens = sum(map(len, ids))
    return {name: energy / tokens for name, energy in sums.items()}
