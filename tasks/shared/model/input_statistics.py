"""Statistics of a matrix's inputs on calibration rows (functions of tensors).

They are summed over batches, and fit `tasks.shared.model.layer_walk`, where a layer reads what the layers before it became, and, with their arguments in order,
`tasks.shared.model.activations`, where all layers are those of the source.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def column_energy(entering: "Tensor", mask: "Tensor") -> "Tensor":
    """Sum of squares of each input over the real tokens: the diagonal of `gram`.

    entering: (batch, length, in).  mask: (batch, length), 1 on real tokens.  Returns (in,), float64.
    """
    return (entering.float().square() * mask[..., None]).flatten(0, -2).double().sum(0)


def gram(entering: "Tensor", mask: "Tensor") -> "Tensor":
    """Sum of products of inputs over the real tokens, X^T X.

    Up to a factor, the Hessian of GPTQ and SparseGPT.
    entering: (batch, length, in).  mask: (batch, length), 1 on real tokens.  Returns (in, in), float64; the products of a batch
    are summed in float32.
    """
    rows = entering[mask.bool()].float()  # (tokens, in)
    return (rows.T @ rows).double()
