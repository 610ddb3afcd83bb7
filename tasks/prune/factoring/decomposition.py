"""Best products of a given rank, for a matrix or for its outputs (functions of tensors).

Source: SVD-LLM, Wang et al. 2024, arXiv 2403.07378, section 3.1.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def decompose(weight: "Tensor", factor: "Tensor | None" = None) -> "tuple[Tensor, Tensor]":
    """Directions of a matrix's output by their size, and these sizes.

    weight: (out, in).
    factor: (in, in), `input_factor` of its inputs; None takes all inputs for equal and independent, as a plain decomposition does.
    Returns the left singular vectors of weight times factor, (out, k), and its singular values, (k,), descending; both float64.
    """
    import torch

    wide = weight.double()
    directions, spectrum, _ = torch.linalg.svd(wide if factor is None else wide @ factor, full_matrices=False)
    return directions, spectrum


def reduced(weight: "Tensor", directions: "Tensor", rank: int) -> "Tensor":
    """Product of the two factors of this rank that change a matrix's outputs least.

    weight: (out, in).  directions: (out, k), from `decompose`.
    With U S V^T for the decomposition of W L, the best product is U_r S_r V_r^T L^-1.  Since U_r S_r V_r^T is U_r U_r^T W L, this is
    the projection U_r U_r^T W, and L needs no inverse.
    Returns (out, in), float64.
    """
    kept = directions[:, :rank]
    return kept @ (kept.T @ weight.double())


def rank_by_energy(spectrum: "Tensor", energy: float) -> int:
    """Return the lowest rank whose share of the spectrum's squares is at least `energy`.

    spectrum: (k,), descending.
    """
    sums = spectrum.square().cumsum(0)
    return min(len(spectrum), 1 + int((sums < energy * sums[-1]).sum()))


def rank_by_ratio(outputs: int, inputs: int, ratio: float) -> int:
    """Return the highest rank whose two factors hold at most this share of a matrix's weights."""
    return int(ratio * outputs * inputs / (outputs + inputs))


def highest_rank(outputs: int, inputs: int) -> int:
    """Return the highest rank whose two factors hold fewer weights than the matrix."""
    return (outputs * inputs - 1) // (outputs + inputs)


def output_error(difference: "Tensor", weight: "Tensor", products: "Tensor") -> float:
    """Squared error of a matrix's outputs, as a share of their squares; 0 without outputs.

    difference: (out, in), of the changed weights.  weight: (out, in), before.  products: (in, in), float64, `gram` of the inputs.
    """
    change, whole = (float(((each.double() @ products) * each).sum()) for each in (difference, weight))
    return change / whole if whole > 0 else 0.0
