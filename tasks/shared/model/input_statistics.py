"""Statistics of a matrix's inputs on calibration rows (functions of tensors).

They are summed over batches, and fit `tasks.shared.model.layer_walk`, where a layer reads what the layers before it became, and, with their arguments in order,
`tasks.shared.model.activations`, where all layers are those of the source.
"""

from typing import TYPE_CHECKING

from tasks.shared.errors import TechniqueError

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


def input_factor(products: "Tensor", damping: float) -> "Tensor":
    """Lower Cholesky factor L of the damped products of inputs: L L^T = X^T X + damping.

    products: (in, in), float64, sum of products of the inputs.
    damping: added to its diagonal, as a fraction of the diagonal's mean.  It also gives an input that is always zero an inverse.
    Returns (in, in), float64.  Raises TechniqueError if the damped matrix is not positive definite.
    """
    import torch

    damped = products.clone()
    diagonal = damped.diagonal()
    diagonal += damping * float(diagonal.mean()) or 1.0  # inputs that are all zero
    try:
        return torch.linalg.cholesky(damped)
    except torch.linalg.LinAlgError as error:
        raise _not_definite(damping) from error


def inverse_factor(products: "Tensor", damping: float) -> "Tensor":
    """Upper Cholesky factor of the inverse Hessian.

    products: (in, in), float64, sum of products of the inputs.
    damping: see `input_factor`.
    Returns (in, in), float32.  Raises TechniqueError if the damped matrix is not positive definite.
    """
    import torch

    factor = input_factor(products, damping)
    try:
        return torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True).float()
    except torch.linalg.LinAlgError as error:
        raise _not_definite(damping) from error


def _not_definite(damping: float) -> TechniqueError:
    return TechniqueError(
        "damping",
        f"{damping} leaves the Hessian of a layer's inputs not positive definite",
        "inputs that vary in every direction",
        f"damping={min(0.5, 10 * damping):g}, or more calibration rows",
    )
