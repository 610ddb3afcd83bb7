"""Linear layers that compute with weights on a grid, while their own weights are trained.

The gradient of the rounded weight is taken as the weight's own: the straight-through estimator (Bengio et al. 2013, arXiv 1308.3432,
section 4).  A learned factor of each scale gets the gradient of LSQ (Esser et al. 2020, arXiv 1902.08153, section 2.1); it is learned as
a logarithm, so that AdamW's steps are relative, and multiplies the scale of the extremes, as learnable clipping does (Shao et al. 2024,
arXiv 2308.13137, section 3.2).

The layer rounds in its own forward pass.  So recomputed activations, compiled layers and weights gathered from several GPUs are computed
with the same rounded weights as any others.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch

from tasks.distill.training.qat import Qat
from tasks.shared.model.grids import Grid, GridName, group_scales, nearest_levels, round_to_grid
from tasks.shared.model.linear_layers import input_sizes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@torch.library.custom_op("stillroom::round_through", mutates_args=())
def round_through(weight: torch.Tensor, factor: torch.Tensor | None, name: str, group: int) -> torch.Tensor:
    """Round a matrix to a grid; its gradient is the matrix's.

    An operator of its own, since torch 2.13 cannot compile it as a part of a layer.

    weight: (out, in), float32.
    factor: (out, groups), logarithms of the scales' factors; None for 0.
    name, group: of the grid.
    Returns (out, in), float32.
    """
    levels, scale = _levels(weight, factor, name, group)
    return levels.mul_(scale).flatten(-2)


@round_through.register_fake
def _(weight: torch.Tensor, factor: torch.Tensor | None, name: str, group: int) -> torch.Tensor:
    return torch.empty_like(weight)


def _keep_inputs(ctx: Any, inputs: Any, output: Any) -> None:
    weight, factor, ctx.name, ctx.group = inputs
    ctx.learned = factor is not None
    if ctx.learned:
        ctx.save_for_backward(weight, factor)


def _gradients(ctx: Any, gradient: "Tensor") -> "tuple[Tensor, Tensor | None, None, None]":
    """The matrix's gradient is that of its rounding."""
    change = factor_gradient(gradient, *ctx.saved_tensors, ctx.name, ctx.group) if ctx.learned else None
    return gradient, change, None, None


round_through.register_autograd(_gradients, setup_context=_keep_inputs)


@torch.library.custom_op("stillroom::factor_gradient", mutates_args=())
def factor_gradient(
    gradient: torch.Tensor, weight: torch.Tensor, factor: torch.Tensor, name: str, group: int
) -> torch.Tensor:
    """Gradient for the logarithms of the scales' factors, by LSQ.

    A weight's part is its level less its number of steps, or its level where it is clipped, times the scale.

    gradient: (out, in), of the rounded matrix.
    weight: (out, in), float32.
    factor: (out, groups).
    Returns (out, groups).
    """
    levels, scale = _levels(weight, factor, name, group)
    moved = levels - weight.unflatten(-1, (-1, group)) / scale
    slope = torch.where(moved.abs() <= MOST_ROUNDING[name], moved, levels)
    return (gradient.unflatten(-1, (-1, group)) * slope).sum(-1) * scale[..., 0]


@factor_gradient.register_fake
def _(gradient: torch.Tensor, weight: torch.Tensor, factor: torch.Tensor, name: str, group: int) -> torch.Tensor:
    return torch.empty_like(factor)


MOST_ROUNDING: Mapping[str, float] = {
    "int4_symmetric": 0.5, "int4_asymmetric": 0.5, "q4_0": 0.5, "iq4_nl": 12.0, "q2_0": 0.5, "tq2_0": 0.5,
}  # fmt: skip
"""Distance, in units of the scale, by which rounding moves a weight at most; those that are clipped move farther."""


def _levels(weight: "Tensor", factor: "Tensor | None", name: str, group: int) -> "tuple[Tensor, Tensor]":
    """Levels (out, groups, size) and scales (out, groups, 1)."""
    groups = weight.unflatten(-1, (-1, group))
    grid = cast("GridName", name)  # operators take plain strings
    scale, low = group_scales(groups, grid, None if factor is None else factor.exp()[..., None])
    return nearest_levels(groups, scale, low, grid), scale


class RoundedLinear(torch.nn.Linear):
    """A linear layer with its weight on a grid.

    factor: (out, groups), learned logarithms of the scales' factors; None if they are not learned.
    """

    factor: "Tensor | None"
    held: "Tensor | None"

    def __init__(self, layer: torch.nn.Linear, grid: Grid, learned: bool) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias, self.grid = layer.weight, layer.bias, grid
        self.holding, self.held = False, None
        shape = (layer.out_features, layer.in_features // grid.group)
        self.register_parameter("factor", torch.nn.Parameter(torch.zeros(shape)) if learned else None)

    def rounded(self) -> "Tensor":
        """The weight on the grid: (out, in), float32."""
        found: Tensor = round_through(self.weight, self.factor, self.grid.name, self.grid.group)
        return found

    def forward(self, given: "Tensor") -> "Tensor":
        """Apply the rounded weight; autocast chooses the arithmetic.

        given: (..., in).  Returns (..., out).
        """
        if not self.holding:
            return torch.nn.functional.linear(given, self.rounded(), self.bias)
        if self.held is None:
            self.held = self.rounded()
        return torch.nn.functional.linear(given, self.held, self.bias)

    def plain(self) -> torch.nn.Linear:
        """An ordinary layer with the rounded weight."""
        layer = torch.nn.utils.skip_init(torch.nn.Linear, self.in_features, self.out_features, self.bias is not None)
        with torch.no_grad():
            layer.weight, layer.bias = torch.nn.Parameter(self.rounded()), self.bias
        return layer


def round_layers(model: "PreTrainedModel", settings: Qat) -> dict[str, Grid]:
    """Let a model's linear layers, all but the head, compute with rounded weights.

    Frozen ones are rounded for good: they are served rounded, and the layers above can make up for it.  Weights that are on the grid
    already stay as they are.
    Returns the grid of each layer; none, and an unchanged model, without one.
    Raises TechniqueError for groups that do not divide every layer, or matrices outside of linear layers.
    """
    if settings.weight_grid is None:
        return {}
    grids = settings.fitting_grids(input_sizes(model))
    for name, grid in grids.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, torch.nn.Linear)
        if layer.weight.requires_grad:
            model.set_submodule(name, RoundedLinear(layer, grid, settings.scales == "learned"))
        else:
            layer.weight.data = round_to_grid(layer.weight.data, grid)
    return grids


def rounded_layers(model: torch.nn.Module) -> "dict[str, RoundedLinear]":
    """Layers that compute with rounded weights, by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, RoundedLinear)}


def settle(model: torch.nn.Module) -> None:
    """Replace the layers by ordinary ones with rounded weights, as they computed."""
    for name, layer in rounded_layers(model).items():
        model.set_submodule(name, layer.plain())


@contextmanager
def rounded_once(model: torch.nn.Module) -> Iterator[None]:
    """Keep rounded weights from their first use to the end of a block that changes no weight."""
    layers = rounded_layers(model).values()
    for layer in layers:
        layer.holding = True
    try:
        yield
    finally:
        for layer in layers:
            layer.holding, layer.held = False, None
