"""Rounding with error feedback: on the grid, nearer in the outputs, and equal to rounding where inputs are independent."""

import pytest
import torch

from tasks.quantize.error_feedback import fitted_scales, ordered_factor, output_error, rounded_to, with_feedback
from tasks.shared.model.grids import Grid, GridName, find_levels


def inputs_and_weight(columns: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Products of correlated inputs, and a weight of 48 outputs."""
    draw = torch.Generator().manual_seed(0)
    mixed = torch.randn(400, columns, generator=draw) @ torch.randn(columns, columns, generator=draw)
    return (mixed.T @ mixed).double(), torch.randn(48, columns, generator=draw)


@pytest.mark.parametrize("name", ["iq4_nl", "q4_0"])
def test_outputs_are_nearer_than_by_rounding_and_weights_are_on_the_grid(name: GridName) -> None:
    grid = Grid(name, 32)
    products, weight = inputs_and_weight(192)  # more columns than a block
    scale, low = fitted_scales(weight, products.diagonal(), grid)
    found, plain = (
        with_feedback(weight, *ordered_factor(products, 0.01), scale, low, grid),
        rounded_to(weight, scale, low, grid),
    )
    for rounded in (found, plain):
        assert find_levels(rounded.unflatten(-1, (-1, 32)), name) is not None
    assert output_error(found - weight, products) < 0.7 * output_error(plain - weight, products)


def test_independent_inputs_need_no_feedback() -> None:
    grid = Grid("iq4_nl", 32)
    _, weight = inputs_and_weight()
    products = torch.diag(torch.arange(1.0, 65.0)).double()
    scale, low = fitted_scales(weight, products.diagonal(), grid)
    assert torch.equal(
        with_feedback(weight, *ordered_factor(products, 0.01), scale, low, grid), rounded_to(weight, scale, low, grid)
    )


def test_what_is_on_the_grid_stays() -> None:
    grid = Grid("iq4_nl", 32)
    products, weight = inputs_and_weight()
    scale, low = fitted_scales(weight, products.diagonal(), grid)
    once = rounded_to(weight, scale, low, grid)
    assert torch.equal(with_feedback(once, *ordered_factor(products, 0.01), scale, low, grid), once)


def test_fitted_scales_weigh_the_columns_by_their_energy() -> None:
    grid = Grid("iq4_nl", 32)
    _, weight = inputs_and_weight()
    energy = torch.ones(64)
    energy[:4] = 1000.0

    def error(of: torch.Tensor) -> float:
        rounded = rounded_to(weight, *fitted_scales(weight, of, grid), grid)
        return float(((rounded - weight).square() * energy).sum())

    assert error(energy) < error(torch.ones(64))
