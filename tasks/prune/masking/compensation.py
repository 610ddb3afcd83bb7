"""Removal of weights whose neighbors compensate for them (functions of tensors).

Source: SparseGPT, Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tasks.prune.masking.choice import lowest_of_groups
from tasks.prune.masking.scores import saliency
from tasks.shared.model.prunable import lowest_of_matrix

if TYPE_CHECKING:
    from torch import Tensor


def compensated(
    weight: "Tensor", factor: "Tensor", choose: "Callable[[Tensor, int], Tensor]", block: int, group: int
) -> "Tensor":
    """Return a weight in which some are zero and those after them make up for it.

    weight: (out, in).  factor: (in, in), `inverse_factor` of its inputs.
    choose: (scores of a group of columns, its first column) -> where its zeros go; `by_sparsity` or `by_pattern`.
    block: columns after which the errors reach the columns beyond.  group: columns among which zeros are chosen at once; divides
    `block`.
    Weights that are zero already stay zero.  Without any zero to place, the weight returns unchanged.
    """
    import torch

    result, held = weight.detach().clone(), weight == 0
    columns = weight.shape[1]
    for start in range(0, columns, block):
        end = min(start + block, columns)
        part, inner = result[:, start:end].clone(), factor[start:end, start:end]
        errors, zeros = torch.zeros_like(part), held[:, start:end].clone()
        for column in range(end - start):
            if column % group == 0:
                chosen = slice(column, column + group)
                scores = saliency(part[:, chosen], inner.diagonal()[chosen]).masked_fill(zeros[:, chosen], -1.0)
                zeros[:, chosen] |= choose(scores, start + column)
            removed = zeros[:, column]
            errors[:, column] = part[:, column].where(removed, 0.0) / inner[column, column]
            part[:, column].masked_fill_(removed, 0.0)
            part[:, column + 1 :] -= errors[:, column, None] * inner[column, column + 1 :]
        result[:, start:end] = part
        result[:, end:] -= errors @ factor[start:end, end:]
    return result


def by_sparsity(sparsity: float) -> "Callable[[Tensor, int], Tensor]":
    """Choose the lowest scores of each group of columns; the whole matrix has this sparsity."""

    def choose(scores: "Tensor", start: int) -> "Tensor":
        rows, end = len(scores), start + scores.shape[1]
        return lowest_of_matrix(scores, round(sparsity * rows * end) - round(sparsity * rows * start))

    return choose


def by_pattern(pattern: str) -> "Callable[[Tensor, int], Tensor]":
    """Choose all but the N highest scores of each output's M inputs."""
    return lambda scores, _: lowest_of_groups(scores, pattern)
