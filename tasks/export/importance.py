"""Column importance of linear weights: mean squared inputs on calibration conversations."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.shared.model.activations import collect
from tasks.shared.progress import track

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def input_energy(model: "PreTrainedModel", ids: Sequence[Sequence[int]]) -> dict[str, "Tensor"]:
    """Return the mean squared input per column of every linear layer, by weight name.

    ids: token ids per row, processed one row at a time without padding.  Returns (in,), float32, per weight: the diagonal of
    GPTQ's Hessian.  With uncorrelated inputs, a rounded weight adds this times its squared error to the layer's output error.
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
