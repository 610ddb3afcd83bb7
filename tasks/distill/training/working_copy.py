"""Weights in the arithmetic of the forward pass, cast once per pass instead of at every use.

Autocast keeps the sum of the layers' outputs (the residual stream), the norms and the embedding in float32, and casts each input of each
matrix product.  On a CPU most of a training step went into these casts and into elementwise work on float32 tensors.  With weights in
bfloat16, everything between them is bfloat16, as it is where the model is served, and the weights that the optimizer changes stay float32
(Micikevicius et al. 2018, arXiv 1710.03740, section 3.1).
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from tasks.distill.training.rounded_layers import rounded_layers

if TYPE_CHECKING:
    from torch import Tensor


class _Work(torch.nn.Module):
    """A function of a model's weights, as a module, which `functional_call` wants."""

    def __init__(self, model: torch.nn.Module, work: Callable[[], Any]) -> None:
        super().__init__()
        self.model, self.work = model, work

    def forward(self) -> Any:
        return self.work()


def with_cast_weights(model: torch.nn.Module, dtype: torch.dtype, work: Callable[[], Any]) -> Any:
    """Return work(), during which the model's float32 weights are copies in another dtype.

    Gradients reach the float32 weights.  Weights that the family keeps in float32 stay, and those that their layers round to a grid.
    """
    copies = {f"model.{name}": weight.to(dtype) for name, weight in _castable(model)}
    return torch.func.functional_call(_Work(model, work), copies, ())


def _castable(model: torch.nn.Module) -> "Iterator[tuple[str, Tensor]]":
    kept: set[str] = set()
    for part in model.modules():
        for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
            kept.update(getattr(part, attribute, None) or ())
    rounded = {id(weight) for layer in rounded_layers(model).values() for weight in (layer.weight, layer.factor)}
    for name, weight in model.named_parameters():
        if weight.dtype == torch.float32 and id(weight) not in rounded and not kept.intersection(name.split(".")):
            yield name, weight
