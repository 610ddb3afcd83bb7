"""Importance of the units of one block, by criterion (pure tensor math).

A unit is a query head or a feed-forward neuron.  A new criterion is a function here, an entry in `CRITERIA`, and its name in `Criterion`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Criterion = Literal["activation", "contribution", "fluctuation", "wanda", "taylor", "magnitude", "random"]
MEASURED = frozenset({"activation", "contribution", "fluctuation", "wanda"})
"""Criteria that read `Block.moments`."""
DIFFERENTIATED = frozenset({"taylor"})
"""Criteria that read `Block.gates`."""


@dataclass(frozen=True)
class Moments:
    """Sums over tokens of what the units of one block give.

    first: (units, width), float64, of the values.
    second: (units, width, width), float64, of their outer products.
    tokens: number of tokens.
    """

    first: "Tensor"
    second: "Tensor"
    tokens: int


@dataclass(frozen=True)
class Block:
    """Tensors of one layer's attention or feed-forward block that a criterion may read.

    outgoing: (out, units, width), the last projection's columns of each unit; width is 1 for neurons, the head size for heads.
    incoming: (units, weights), the rows that produce each unit.
    draws: (units,), uniform random numbers.
    moments: of what the units give.
    gates: (units,), float64, sums over conversations of the squared gradient by a factor on each unit.
    """

    outgoing: "Tensor"
    incoming: "Tensor"
    draws: "Tensor"
    moments: Moments
    gates: "Tensor"


def activation(moments: "Tensor") -> "Tensor":
    """Energy of the activations: the sum of squares of what each unit gives.

    moments: (units, width, width).  Returns (units,), float64.
    Muralidharan et al. 2024, arXiv 2407.14679, section 2.2, with the sum of squares as aggregation over tokens.
    """
    return moments.diagonal(dim1=1, dim2=2).sum(1)


def contribution(outgoing: "Tensor", moments: "Tensor") -> "Tensor":
    """Energy of each unit's part in its block's output: the error if it alone is removed.

    outgoing: (out, units, width).  moments: (units, width, width).
    Returns (units,), float64: the squared norm of what the last projection makes of the unit, summed over tokens.
    """
    weight = outgoing.double().transpose(0, 1)  # (units, out, width)
    return ((weight @ moments) * weight).sum((1, 2))


def fluctuation(outgoing: "Tensor", first: "Tensor", second: "Tensor", tokens: int) -> "Tensor":
    """Energy of each channel's deviation from its mean times its squared outgoing weights.

    outgoing: (out, units, width).  first: (units, width).  second: (units, width, width).  tokens: > 0.
    Returns (units,), float64; a unit that is constant on all tokens gets 0, up to the rounding of float64.
    An et al. 2024, arXiv 2312.11983 (weighted input feature variance), as a sum over tokens.  Of a neuron it is exactly the error of
    the block's output if this unit alone is replaced by its mean.  Channels of a head are added up; the authors' code adds their squares.
    """
    deviations = (second.diagonal(dim1=1, dim2=2) - first.square() / tokens).clamp(min=0)  # (units, width)
    return (outgoing.double().square().sum(0) * deviations).sum(1)


def wanda(outgoing: "Tensor", moments: "Tensor") -> "Tensor":
    """Sum of the magnitudes of a unit's outgoing weights times the norms of their inputs.

    outgoing: (out, units, width).  moments: (units, width, width).  Returns (units,), float64.
    Sun et al. 2024, arXiv 2306.11695, section 3, summed over whole columns (Wanda-sp in An et al. 2024, arXiv 2312.11983).
    """
    norms = moments.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()  # (units, width)
    return (outgoing.double().abs().sum(0) * norms).sum(1)


def magnitude(outgoing: "Tensor", incoming: "Tensor") -> "Tensor":
    """Norm of all weights of a unit, whatever they are multiplied with: a control.

    outgoing: (out, units, width).  incoming: (units, weights).  Returns (units,), float64.
    """
    return (outgoing.double().square().sum((0, 2)) + incoming.double().square().sum(1)).sqrt()


CRITERIA: Mapping[str, Callable[[Block], "Tensor"]] = {
    "activation": lambda block: activation(block.moments.second),
    "contribution": lambda block: contribution(block.outgoing, block.moments.second),
    "fluctuation": lambda block: fluctuation(
        block.outgoing, block.moments.first, block.moments.second, block.moments.tokens
    ),
    "wanda": lambda block: wanda(block.outgoing, block.moments.second),
    "taylor": lambda block: block.gates,
    "magnitude": lambda block: magnitude(block.outgoing, block.incoming),
    "random": lambda block: block.draws,
}
"""Scores (units,) of a block, by criterion; the highest stay."""
