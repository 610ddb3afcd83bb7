"""Choice of the weights to prune from their scores (functions of tensors)."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from tasks.shared.model.masks import parse_pattern
from tasks.shared.model.prunable import lowest

if TYPE_CHECKING:
    from torch import Tensor

HALF = 16
"""Bits of half a float32."""


def lowest_of_groups(scores: "Tensor", pattern: str) -> "Tensor":
    """Return where all but the N highest of every M consecutive scores of a row are.

    scores: (out, in); M divides in.
    """
    keep, of = parse_pattern(pattern)
    return lowest(scores.unflatten(-1, (-1, of)).flatten(0, 1), of - keep).view(scores.shape)


class Cut:
    """The lowest of the scores of many matrices, found without holding them at once.

    Two passes count the upper and the lower halves of the scores' bits: those of numbers that are not negative are in the
    numbers' order.
    """

    def __init__(self, scores: "Callable[[], Iterable[Tensor]]", count: int) -> None:
        """Find the threshold.

        scores: yields every matrix's, float32 and >= 0, the same each time.  count: number of scores below the cut, at least 1.
        """
        upper = _counts(_bits(each) >> HALF for each in scores())
        high, before = _place(upper, count)
        mask = (1 << HALF) - 1
        lower = _counts(bits[bits >> HALF == high] & mask for bits in map(_bits, scores()))
        low, below = _place(lower, count - before)
        self.edge = (high << HALF) + low
        self.missing = count - before - below

    def take(self, scores: "Tensor") -> "Tensor":
        """Return where a matrix's scores are below the cut.

        scores: (out, in), float32; the matrices in their order, each once.
        Of the scores on the edge, the first ones are taken, as many as the count leaves.
        """
        bits = _bits(scores)
        equal = bits == self.edge
        taken = equal & (equal.cumsum(-1) <= self.missing)
        self.missing -= int(taken.sum())
        return ((bits < self.edge) | taken).view(scores.shape)


def _bits(scores: "Tensor") -> "Tensor":
    """Bits of scores as integers, (n,), in the scores' order."""
    import torch

    return (scores.float().flatten() + 0.0).view(torch.int32)  # -0.0 becomes 0.0


def _counts(halves: "Iterable[Tensor]") -> "Tensor":
    """Count how often each half occurs, (65536,), int64, on the CPU."""
    import torch

    counts = torch.zeros(1 << HALF, dtype=torch.int64)
    for each in halves:
        counts += torch.bincount(each, minlength=1 << HALF).cpu()
    return counts


def _place(counts: "Tensor", wanted: int) -> tuple[int, int]:
    """Return the bin in which the `wanted`-th one is, and how many are in the bins before."""
    sums = counts.cumsum(0)
    found = int((sums < wanted).sum())
    return found, int(sums[found] - counts[found])
