"""SparseGPT's arithmetic: what is left is the best fit, masks are exact, and nothing to remove changes nothing."""

import pytest
import torch

from tasks.prune.masking.choice import lowest_of_groups
from tasks.prune.masking.compensation import by_pattern, by_sparsity, compensated
from tasks.prune.masking.scores import wanda
from tasks.shared.errors import TechniqueError
from tasks.shared.model.input_statistics import inverse_factor
from tasks.shared.model.prunable import lowest
from tests.matrix_errors import output_error


def problem(
    outputs: int = 12, width: int = 32, seed: int = 0, spread: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and the products of correlated inputs, whose sizes differ by up to 10 ** (2 * spread)."""
    draw = torch.Generator().manual_seed(seed)
    mixing = 0.3 * torch.randn(width, width, generator=draw) + 2 * torch.eye(width)
    sizes = torch.logspace(-spread, spread, width)[torch.randperm(width, generator=draw)]
    inputs = torch.randn(400, width, generator=draw) @ mixing * sizes
    return torch.randn(outputs, width, generator=draw), (inputs.T @ inputs).double()


def test_what_is_left_after_one_column_is_the_least_squares_fit() -> None:
    """The remaining error is orthogonal to every input that is left: no other weights do better."""
    weight, products = problem()
    first = torch.zeros_like(weight, dtype=torch.bool)
    first[:, 0] = True
    pruned = compensated(weight, inverse_factor(products, 1e-9), lambda _, start: first[:, start : start + 16], 16, 16)
    assert not pruned[:, 0].any()
    gradient = (pruned - weight).double() @ products
    before = (weight * ~first - weight).double() @ products
    assert gradient[:, 1:].norm() < 1e-4 * before[:, 1:].norm()


@pytest.mark.parametrize("block", [8, 12, 32, 100])
def test_the_sparsity_is_exact_and_the_weight_is_not_touched(block: int) -> None:
    weight, products = problem()
    before = weight.clone()
    pruned = compensated(weight, inverse_factor(products, 0.01), by_sparsity(0.37), block, block)
    assert int((pruned == 0).sum()) == round(0.37 * weight.numel())
    assert torch.equal(weight, before)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_the_pattern_is_exact_in_every_group(pattern: str) -> None:
    weight, products = problem()
    of = int(pattern[-1])
    pruned = compensated(weight, inverse_factor(products, 0.01), by_pattern(pattern), 16, of)
    assert ((pruned != 0).unflatten(-1, (-1, of)).sum(-1) == int(pattern[0])).all()


@pytest.mark.parametrize("seed", range(3))
def test_compensation_beats_wanda_and_wanda_beats_magnitude(seed: int) -> None:
    """Error of the layer's outputs, for half of the weights and for 2:4."""
    weight, products = problem(seed=seed, spread=0.3)
    factor, scores = inverse_factor(products, 0.01), wanda(weight, products.diagonal())
    half = [weight * ~lowest(each, 16) for each in (weight.abs(), scores)]
    half.append(compensated(weight, factor, by_sparsity(0.5), 32, 32))
    groups = [weight * ~lowest_of_groups(each, "2:4") for each in (weight.abs(), scores)]
    groups.append(compensated(weight, factor, by_pattern("2:4"), 32, 4))
    for made in (half, groups):
        magnitude_error, wanda_error, compensated_error = (output_error(weight, each, products) for each in made)
        assert compensated_error < 0.95 * wanda_error and wanda_error < 0.9 * magnitude_error


def test_without_sparsity_the_weight_returns_unchanged() -> None:
    weight, products = problem()
    assert torch.equal(compensated(weight, inverse_factor(products, 0.01), by_sparsity(0.0), 16, 16), weight)


def test_zeros_that_are_there_stay() -> None:
    weight, products = problem()
    held = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    pruned = compensated(weight * ~held, inverse_factor(products, 0.01), by_sparsity(0.3), 16, 16)
    assert not pruned[held].any() and int((pruned == 0).sum()) == int(held.sum())


def test_an_input_that_is_always_zero_has_an_inverse_and_its_weights_go_first() -> None:
    weight, products = torch.ones(6, 32), torch.eye(32, dtype=torch.float64)
    products[5, 5] = 0.0
    pruned = compensated(weight, inverse_factor(products, 0.01), by_sparsity(1 / 32), 32, 32)
    assert not pruned[:, 5].any() and pruned[:, :5].all() and pruned[:, 6:].all()
    assert torch.isfinite(inverse_factor(torch.zeros_like(products), 0.01)).all()


def test_products_without_an_inverse_are_refused() -> None:
    with pytest.raises(TechniqueError, match="not positive definite"):
        inverse_factor(-torch.eye(4, dtype=torch.float64), 0.01)
