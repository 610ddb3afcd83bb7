"""Scores of single weights: the lowest are pruned (functions of tensors)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def magnitude(weight: "Tensor") -> "Tensor":
    """Absolute value (Han et al. 2015, arXiv 1506.02626, section 3.1).

    weight: (out, in).  Returns the same shape, float32.
    """
    return weight.detach().float().abs()


def wanda(weight: "Tensor", energy: "Tensor") -> "Tensor":
    """Absolute value times the norm of the weight's input.

    Source: Sun et al. 2023, arXiv 2306.11695, section 3.
    weight: (out, in).  energy: (in,), sum of squares of each input over the calibration tokens.  Returns (out, in), float32.
    Comparable within a row, whose weights have the same output.
    """
    return magnitude(weight) * energy.sqrt().float()


def saliency(weight: "Tensor", factor: "Tensor") -> "Tensor":
    """Error of the layer's output if a weight is removed and later ones compensate for it.

    weight: (out, n).  factor: (n,), diagonal of the upper Cholesky factor of the inverse Hessian, of these columns.
    Source: Frantar and Alistarh 2023, arXiv 2301.00774, section 3.3.
    """
    return (weight / factor).square()
