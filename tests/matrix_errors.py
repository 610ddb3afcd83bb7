"""Error of a changed matrix by its outputs."""

import torch


def output_error(weight: torch.Tensor, other: torch.Tensor, products: torch.Tensor) -> float:
    """Squared error of a matrix's outputs, as a share of their squares.

    weight, other: (out, in), before and after.  products: `gram` of the inputs, (in, in).
    """
    difference, whole = (weight - other).double(), weight.double()
    return float(((difference @ products) * difference).sum() / ((whole @ products) * whole).sum())
