"""Choice of the channels, neurons and heads that a student keeps (pure tensor math)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.prune.selection.shape import Shape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Importance scores; the highest are kept.

    hidden: (hidden,).  heads: (layers, heads).  neurons: (layers, intermediate).
    """

    hidden: "Tensor"
    heads: "Tensor"
    neurons: "Tensor"


@dataclass(frozen=True)
class Picks:
    """Ascending indices of the units kept of one teacher layer.

    hidden: (kept,), the channels; the same in all layers.  heads, kv_heads, neurons: (kept,), of this layer.
    teacher: sizes before the cut.
    """

    hidden: "Tensor"
    heads: "Tensor"
    kv_heads: "Tensor"
    neurons: "Tensor"
    teacher: Shape

    def along(self) -> Mapping[str, "Tensor"]:
        """Return indices by kind of axis, of the kinds of which something goes.

        An axis of heads has head_dim rows per head; one of gates has all gates, then all neurons.
        """
        import torch

        size, found = self.teacher.head_dim, {}
        if len(self.hidden) < self.teacher.hidden:
            found["hidden"] = self.hidden
        if len(self.heads) < self.teacher.heads:
            found["heads"] = rows_of(self.heads, size)
        if len(self.kv_heads) < self.teacher.kv_heads:
            found["kv_heads"] = rows_of(self.kv_heads, size)
        if len(self.neurons) < self.teacher.intermediate:
            found["neurons"] = self.neurons
            found["gates"] = torch.cat([self.neurons, self.neurons + self.teacher.intermediate])
        return found


def rows_of(heads: "Tensor", head_dim: int) -> "Tensor":
    """Rows of a projection that belong to the given heads.

    heads: (heads,), indices.  Returns (heads * head_dim,).
    """
    import torch

    return (heads[:, None] * head_dim + torch.arange(head_dim)).flatten()


def leading(shape: Shape) -> Scores:
    """Return scores that keep the first units (consecutive selection).

    Source: Xu et al. 2023, arXiv 2311.18823, section 3.
    """
    import torch

    falling = [-torch.arange(size, dtype=torch.float64) for size in (shape.hidden, shape.heads, shape.intermediate)]
    return Scores(falling[0], falling[1].expand(shape.layers, -1), falling[2].expand(shape.layers, -1))


def highest(scores: "Tensor", count: int) -> "Tensor":
    """Ascending indices of the `count` largest scores; ties go to the lower index.

    scores: (units,).  Returns (count,), int64.
    """
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def choose_heads(scores: "Tensor", teacher: Shape, student: Shape) -> "tuple[Tensor, Tensor]":
    """Choose query heads and the key-value heads that they share, for one layer.

    scores: (heads,).  Of each group of query heads that share a key-value head the best are candidates; the groups with the
    largest sum of candidates stay.  So every head keeps the key-value head it was trained with.
    """
    import torch

    grouped = scores.view(teacher.kv_heads, teacher.group)
    best = torch.stack([highest(group, student.group) for group in grouped])  # (kv_heads, kept of each group)
    kv_heads = highest(grouped.gather(1, best).sum(1), student.kv_heads)
    return (kv_heads[:, None] * teacher.group + best[kv_heads]).flatten(), kv_heads


def choose(scores: Scores, teacher: Shape, student: Shape) -> list[Picks]:
    """Choose the units to keep of each teacher layer."""
    hidden = highest(scores.hidden, student.hidden)
    found = []
    for heads, neurons in zip(scores.heads, scores.neurons, strict=True):
        queries, kv_heads = choose_heads(heads, teacher, student)
        found.append(Picks(hidden, queries, kv_heads, highest(neurons, student.intermediate), teacher))
    return found
