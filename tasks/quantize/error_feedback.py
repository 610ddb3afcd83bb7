"""Rounding to a grid with error feedback (functions of tensors).

Later columns make up for the errors of earlier ones.
Source: GPTQ, Frantar et al. 2023, arXiv 2210.17323, algorithm 1, with columns in the order of their inputs' energy.
"""

from typing import TYPE_CHECKING

from tasks.shared.model.grids import Grid, group_scales, nearest_levels
from tasks.shared.model.input_statistics import inverse_factor

if TYPE_CHECKING:
    from torch import Tensor

RATIOS = tuple(0.82 + 0.04 * step for step in range(9))
"""Scales that are tried, against those that reach each group's extreme."""
BLOCK = 128
"""Columns after which errors reach the columns beyond."""


def fitted_scales(weight: "Tensor", energy: "Tensor", grid: Grid) -> "tuple[Tensor, Tensor]":
    """Return each group's scale of least weighted rounding error, and its lowest level.

    weight: (out, in), float32.  energy: (in,), of the inputs.  Returns (out, groups, 1) each.
    """
    import torch

    groups = weight.unflatten(-1, (-1, grid.group))
    weights = energy.float().unflatten(-1, (-1, grid.group))
    scale, low = group_scales(groups, grid.name)
    least = torch.full_like(scale, torch.inf)
    for ratio in RATIOS:
        tried, lowest = group_scales(groups, grid.name, torch.full_like(scale, ratio))
        error = (nearest_levels(groups, tried, lowest, grid.name) * tried - groups).square_().mul_(weights)
        error = error.sum(-1, keepdim=True)
        better = error < least
        least, scale, low = error.where(better, least), tried.where(better, scale), lowest.where(better, low)
    return scale, low


def rounded_to(weight: "Tensor", scale: "Tensor", low: "Tensor", grid: Grid) -> "Tensor":
    """Return the nearest values of the grid at these scales.

    weight: (out, in), float32.  scale, low: (out, groups, 1).  Returns (out, in).
    """
    groups = weight.unflatten(-1, (-1, grid.group))
    return (nearest_levels(groups, scale, low, grid.name) * scale).flatten(-2)


def ordered_factor(products: "Tensor", damping: float) -> "tuple[Tensor, Tensor]":
    """Return the order of the columns, most energy first, and `inverse_factor` in it.

    products: (in, in), float64, sum of products of the inputs.  Returns (in,) and (in, in).
    damping: as in `inverse_factor`.  Raises TechniqueError if the damped products are not positive definite.
    """
    import torch

    order = torch.argsort(products.diagonal(), descending=True)
    return order, inverse_factor(products[order][:, order], damping)


def with_feedback(
    weight: "Tensor", order: "Tensor", factor: "Tensor", scale: "Tensor", low: "Tensor", grid: Grid
) -> "Tensor":
    """Return values of the grid whose outputs differ least from the weight's, column by column.

    weight: (out, in), float32.  order, factor: (in,) and (in, in), as `ordered_factor` returns them.  scale, low: (out, groups, 1).
    """
    import torch

    left = weight[:, order]
    steps, lowest = (part[..., 0].repeat_interleave(grid.group, 1)[:, order] for part in (scale, low))
    columns = weight.shape[1]
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        part, inner = left[:, start:end].clone(), factor[start:end, start:end]
        errors = torch.zeros_like(part)
        for column in range(end - start):
            own, least = steps[:, start + column, None], lowest[:, start + column, None]
            given = part[:, column].clone()
            part[:, column] = (nearest_levels(given[:, None], own, least, grid.name) * own)[:, 0]
            errors[:, column] = (given - part[:, column]) / inner[column, column]
            part[:, column + 1 :] -= errors[:, column, None] * inner[column, column + 1 :]
        left[:, start:end] = part
        left[:, end:] -= errors @ factor[start:end, end:]
    found = torch.empty_like(left)
    found[:, order] = left
    return found


def output_error(change: "Tensor", products: "Tensor") -> float:
    """Return the sum of squares of what a change of weights does to the outputs.

    change: (out, in).  products: (in, in), float64, sum of products of the inputs.
    """
    wide = change.double()
    return float(((wide @ products) * wide).sum())
