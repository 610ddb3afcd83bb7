"""Products of low rank: the least error that any of their rank has, for weights and for outputs."""

import pytest
import torch

from tasks.prune.factoring.decomposition import (
    decompose,
    highest_rank,
    output_error,
    rank_by_energy,
    rank_by_ratio,
    reduced,
)
from tasks.shared.model.input_statistics import input_factor


def problem(outputs: int = 20, width: int = 32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and correlated inputs of different sizes, (tokens, in)."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=draw, dtype=torch.float64)
    inputs = torch.randn(400, width, generator=draw, dtype=torch.float64) @ mixing
    return torch.randn(outputs, width, generator=draw), inputs * torch.logspace(-1, 1, width, dtype=torch.float64)


def whitened(weight: torch.Tensor, inputs: torch.Tensor, rank: int, damping: float = 1e-12) -> torch.Tensor:
    directions, _ = decompose(weight, input_factor(inputs.T @ inputs, damping))
    return reduced(weight, directions, rank)


def squared_error(weight: torch.Tensor, other: torch.Tensor, inputs: torch.Tensor) -> float:
    """|(W - W') X|^2, from the outputs themselves."""
    return float((inputs @ (weight.double() - other).T).square().sum())


@pytest.mark.parametrize("outputs", [20, 48])
@pytest.mark.parametrize("rank", [1, 7, 16])
def test_the_error_of_the_outputs_is_what_the_spectrum_of_the_outputs_leaves(outputs: int, rank: int) -> None:
    """No matrix of this rank is nearer to the outputs Y = X W^T (Eckart and Young), and this one is a matrix on the same inputs."""
    weight, inputs = problem(outputs)
    left = torch.linalg.svdvals(inputs @ weight.double().T)[rank:].square().sum()
    made = whitened(weight, inputs, rank)
    assert squared_error(weight, made, inputs) == pytest.approx(float(left), rel=1e-8)
    assert int(torch.linalg.matrix_rank(made)) == rank


def test_the_projection_is_the_product_of_svd_llm_s_factors() -> None:
    """U_r S_r V_r^T L^-1, with the inverse that `reduced` does without."""
    weight, inputs = problem()
    factor = input_factor(inputs.T @ inputs, 0.01)
    left, spectrum, right = torch.linalg.svd(weight.double() @ factor, full_matrices=False)
    product = torch.linalg.solve_triangular(factor, left[:, :5] * spectrum[:5] @ right[:5], upper=False, left=False)
    torch.testing.assert_close(reduced(weight, decompose(weight, factor)[0], 5), product, rtol=1e-6, atol=1e-8)


def test_without_inputs_it_is_the_truncated_decomposition_of_the_weight() -> None:
    weight, _ = problem()
    left, spectrum, right = torch.linalg.svd(weight.double(), full_matrices=False)
    torch.testing.assert_close(reduced(weight, decompose(weight)[0], 6), left[:, :6] * spectrum[:6] @ right[:6])


@pytest.mark.parametrize("seed", range(3))
def test_each_way_has_the_smaller_error_of_its_own_kind(seed: int) -> None:
    weight, inputs = problem(seed=seed)
    plain, by_inputs = reduced(weight, decompose(weight)[0], 10), whitened(weight, inputs, 10)
    assert squared_error(weight, by_inputs, inputs) < 0.5 * squared_error(weight, plain, inputs)
    assert (weight - plain).norm() < (weight - by_inputs).norm()


@pytest.mark.parametrize("outputs", [20, 48])
def test_the_full_rank_is_the_identity(outputs: int) -> None:
    weight, inputs = problem(outputs)
    torch.testing.assert_close(whitened(weight, inputs, min(outputs, 32)), weight.double(), rtol=1e-6, atol=1e-6)


def test_inputs_that_are_always_zero_cost_nothing() -> None:
    """The products have no inverse then; damping gives them one."""
    weight, inputs = problem()
    inputs[:, 3] = 0.0
    made = whitened(weight, inputs, 10, 0.01)
    assert made.isfinite().all() and squared_error(weight, made, inputs) < squared_error(
        weight, reduced(weight, decompose(weight)[0], 10), inputs
    )


def test_the_error_is_a_share_of_the_outputs_squares() -> None:
    weight, inputs = problem()
    products = inputs.T @ inputs
    assert output_error(weight, weight, products) == pytest.approx(1.0)
    assert output_error(0.5 * weight, weight, products) == pytest.approx(0.25)
    assert output_error(torch.zeros_like(weight), torch.zeros_like(weight), products) == 0.0


def test_ranks_by_energy_and_by_weights() -> None:
    spectrum = torch.tensor([3.0, 2.0, 1.0, 0.0])  # squares 9, 4, 1
    assert [rank_by_energy(spectrum, energy) for energy in (0.1, 9 / 14, 0.65, 0.95, 0.999)] == [1, 1, 2, 3, 3]
    assert rank_by_energy(torch.zeros(4), 0.9) == 1
    assert rank_by_ratio(576, 192, 0.8) == 115  # 115 x 768 of 110,592 weights
    for outputs, inputs in ((576, 192), (1536, 576), (64, 64), (3, 5)):
        rank = highest_rank(outputs, inputs)
        assert rank * (outputs + inputs) < outputs * inputs <= (rank + 1) * (outputs + inputs)
