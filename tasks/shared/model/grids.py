"""Grids of 4 and 2 bits: scales and levels, and the grid on which weights are already.

A group of weights in a row shares a scale; each weight is a level times it.  Scales are rounded to what the formats store (bfloat16 in
compressed-tensors, half precision in GGUF), so that a level times its scale is exact in float32, and so are both formats.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from tasks.shared.errors import ConfigError
from tasks.shared.technique import Upstream

if TYPE_CHECKING:
    import torch
    from torch import Tensor

GridName = Literal["int4_symmetric", "int4_asymmetric", "q4_0", "iq4_nl", "q2_0", "tq2_0"]
IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Levels of iq4_nl (ggml, kvalues_iq4nl)."""
IQ4_NL_ENDS = (2 * IQ4_NL[0], 2 * IQ4_NL[-1])
"""The first and the last, in halves."""
LEVELS = 16
LEAST = -8
"""Lowest of the 16 integers."""
TWO_BITS = (-1, 0, 1, 2)
"""Levels of q2_0 and tq2_0; llama.cpp's own rounding uses three of them."""
BLOCK = 32
"""Weights of a block of llama.cpp's 4-bit types."""
BLOCKS: Mapping[GridName, int] = {"q4_0": BLOCK, "iq4_nl": BLOCK, "q2_0": 64, "tq2_0": 256}
"""Weights of a block of the grids that are llama.cpp's own."""
FILLS: GridName = "iq4_nl"
"""Grid of matrices whose rows the blocks of 2-bit types do not fill; `export/gguf` gives them this type."""
SERVED: Mapping[GridName, tuple[str, ...]] = {
    "int4_symmetric": ("q4_0", "q4_1"), "int4_asymmetric": ("q4_1",), "q4_0": ("q4_0",), "iq4_nl": ("iq4_nl",), "q2_0": ("q2_0",),
    "tq2_0": ("tq2_0",),
}  # fmt: skip
"""Types of GGUF that hold a grid's weights unchanged in as many bits."""
MEAN_STEPS = 1.3
"""Scale of 2-bit groups, in mean magnitudes: of the least squared error for normal weights (docs/log)."""
SMALLEST = 2.0**-24
"""Smallest scale in half precision; of groups that are zero."""
SAMPLE = 64
"""Groups that are looked at first: most weights are on no grid."""


@dataclass(frozen=True)
class Grid:
    """A grid with the size of its groups.

    group: weights that share a scale; 0 for the largest of 128, 64 and 32 that divides every layer.
    """

    name: GridName
    group: int

    def __str__(self) -> str:
        """Name and groups, in words."""
        return f"{self.name} in groups of {self.group or '128, 64 or 32'}"


def is_two_bits(name: GridName) -> bool:
    """Return True for a grid of four levels."""
    return name in ("q2_0", "tq2_0")


def own_grid(name: GridName, row: int) -> Grid | None:
    """Return one of llama.cpp's grids for rows of this size; None if no blocks fill them.

    Rows that the blocks of a 2-bit grid do not fill have the grid FILLS.

    name: a key of BLOCKS.
    """
    for found in (name, FILLS) if is_two_bits(name) else (name,):
        if row % BLOCKS[found] == 0:
            return Grid(found, BLOCKS[found])
    return None


@runtime_checkable
class OnGrid(Protocol):
    """A technique whose model may have linear layers on a grid."""

    @property
    def weight_grid(self) -> Grid | None:
        """The grid; None if the weights are on none."""
        ...


def grid_problems(
    where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream], keeps: Callable[[Grid], bool]
) -> Iterator[ConfigError]:
    """Yield an error for each model that a step would take off the grid of its training.

    keeps: tells whether the step takes a grid's levels and scales over unchanged.
    """
    for name in inputs.get("model", ()):
        technique = upstream[name].technique if name in upstream else None
        grid = technique.weight_grid if isinstance(technique, OnGrid) else None
        if grid is None or keeps(grid):
            continue
        fix = f"export/gguf with scheme={SERVED[grid.name][0]}"
        if grid.name.startswith("int4"):
            symmetric = str(grid.name == "int4_symmetric").lower()
            fix = f"quantize/rtn with bits=4, group_size={grid.group} and symmetric={symmetric}, or {fix}"
        yield ConfigError(
            where, f"its rounding is not the one that {name} was trained with ({grid})", "levels and scales unchanged",
            f"{fix}; or qat.grid=none there",
        )  # fmt: skip


def significant(values: "Tensor", bits: int) -> "Tensor":
    """Round float32 values to so many significant bits, halves away from zero.

    values: (...).  bits: 1 to 23.
    """
    import torch

    dropped = 24 - bits
    whole = values.contiguous().view(torch.int32)
    return ((whole + (1 << (dropped - 1))) & -(1 << dropped)).view(torch.float32)


def storable(scale: "Tensor", name: GridName) -> "Tensor":
    """Round scales to what the grid's formats store; zeros become SMALLEST.

    int4_symmetric: in bfloat16 and half precision.  int4_asymmetric: the same with 7 significant bits, so that a minimum, up to 15
    steps from zero, is exact in half precision too.  llama.cpp's own: half precision.

    scale: (...), float32.
    """
    kept = {"int4_symmetric": 8, "int4_asymmetric": 7}.get(name)
    rounded = (scale if kept is None else significant(scale, kept)).half().float()
    return rounded.masked_fill(rounded == 0, SMALLEST)


def group_scales(groups: "Tensor", name: GridName, ratio: "Tensor | None" = None) -> "tuple[Tensor, Tensor]":
    """Return the scale and the lowest level of each group, from its weights.

    int4_symmetric: the largest magnitude is 7.5 steps, as in compressed-tensors.  int4_asymmetric: 15 steps from the minimum, or zero,
    to the maximum, or zero.  q4_0 and iq4_nl: the largest magnitude is at the lowest level, by the scale's sign, as in llama.cpp.
    q2_0 and tq2_0: MEAN_STEPS mean magnitudes, with level 2 on the side of the largest; at 2 bits a scale that reaches the extremes
    would leave most weights at zero.

    groups: (..., size), float32.
    ratio: (..., 1), > 0; multiplies the scales.
    Returns both as (..., 1), float32; iq4_nl has levels of its own, and its lowest is not used.
    """
    import torch

    low = torch.full_like(groups[..., :1], TWO_BITS[0] if is_two_bits(name) else LEAST)
    least, most = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    if name == "int4_asymmetric":
        least = least.clamp(max=0)
        scale = (most.clamp(min=0) - least) / (LEVELS - 1)
    elif name == "int4_symmetric":
        scale = torch.maximum(-least, most) / ((LEVELS - 1) / 2)
    elif is_two_bits(name):
        size = MEAN_STEPS * groups.abs().mean(-1, keepdim=True)
        scale = torch.where(-least >= most, -size, size)
    else:
        scale = torch.where(-least >= most, least, most) / (IQ4_NL[0] if name == "iq4_nl" else LEAST)
    scale = storable(scale if ratio is None else scale * ratio, name)
    if name == "int4_asymmetric":
        low = (least / scale).round().clamp(1 - LEVELS, 0)
    return scale, low


def nearest_levels(groups: "Tensor", scale: "Tensor", low: "Tensor", name: GridName) -> "Tensor":
    """Return each weight's level, of which the scale is the unit: (..., size), float32.

    groups: (..., size), float32.
    scale, low: (..., 1), as `group_scales` returns them.
    """
    steps = groups / scale
    if name != "iq4_nl":
        return steps.round_().clamp_(low, low + (len(TWO_BITS) if is_two_bits(name) else LEVELS) - 1)
    places = steps.mul_(2).floor_().clamp_(*IQ4_NL_ENDS).sub_(IQ4_NL_ENDS[0]).int()
    return _nearest_of_iq4_nl(groups.device).index_select(0, places.flatten()).view(groups.shape)


@cache
def _nearest_of_iq4_nl(device: "torch.device") -> "Tensor":
    """The nearest level of every multiple of a half, on which limits between levels are."""
    import torch

    halves = torch.arange(IQ4_NL_ENDS[0], IQ4_NL_ENDS[1] + 1, device=device, dtype=torch.float32) / 2
    levels = torch.tensor(IQ4_NL, device=device, dtype=torch.float32)
    return levels[torch.bucketize(halves, (levels[1:] + levels[:-1]) / 2, right=True)]


def round_to_grid(weight: "Tensor", grid: Grid) -> "Tensor":
    """Round a matrix to a grid's nearest values; one that is on it already stays as it is.

    weight: (out, in), float32; the grid's groups divide `in`.
    """
    groups = weight.unflatten(-1, (-1, grid.group))
    if find_levels(groups, grid.name) is not None:
        return weight
    scale, low = group_scales(groups, grid.name)
    return (nearest_levels(groups, scale, low, grid.name) * scale).flatten(-2)


def find_levels(groups: "Tensor", name: GridName) -> "tuple[Tensor, Tensor, Tensor] | None":
    """Find scales with which no weight needs rounding; None unless every group has one.

    A group's reach (its largest magnitude, or its range) is a whole number of steps; all are tried, most steps first, as in a group
    whose scale comes from its extremes.

    groups: (..., size), float32.
    Returns scale and lowest level (..., 1), and levels (..., size), float32; levels times scale equal the groups bit by bit.
    """
    import torch

    flat = groups.flatten(0, -2)
    if len(flat) > SAMPLE and find_levels(flat[:SAMPLE], name) is None:
        return None
    least, most = flat.amin(-1, keepdim=True), flat.amax(-1, keepdim=True)
    if name == "int4_asymmetric":
        reach, tried = most.clamp(min=0) - least.clamp(max=0), [float(steps) for steps in range(LEVELS - 1, 0, -1)]
    else:
        reach = torch.where(-least >= most, least, most)
        levels = IQ4_NL if name == "iq4_nl" else TWO_BITS if is_two_bits(name) else range(LEAST, LEAST + LEVELS)
        tried = [float(level) for level in sorted(levels, key=lambda level: (-abs(level), level)) if level]
        if name == "int4_symmetric":  # whose scales are positive
            reach, tried = reach.abs(), [abs(level) for level in tried if level < 0]
    scale, found = torch.full_like(least, SMALLEST), (flat == 0).all(-1)
    for steps in tried:
        places = (~found).nonzero()[:, 0]
        if not len(places):
            break
        candidate = reach[places] / steps
        level, _ = _levels_of(flat[places], candidate, name)
        fits = (level * candidate == flat[places]).all(-1) & (storable(candidate, name) == candidate)[:, 0]
        scale[places[fits]], found[places[fits]] = candidate[fits], True
    if not found.all():
        return None
    level, low = _levels_of(flat, scale, name)
    shape = (*groups.shape[:-1], 1)
    return scale.view(shape), low.view(shape), level.view(groups.shape)


def _levels_of(groups: "Tensor", scale: "Tensor", name: GridName) -> "tuple[Tensor, Tensor]":
    """Levels at these scales, and the lowest of those that include them, if any do."""
    import torch

    low = torch.full_like(scale, TWO_BITS[0] if is_two_bits(name) else LEAST)
    if name == "int4_asymmetric":
        low = (groups.amin(-1, keepdim=True).clamp(max=0) / scale).round().clamp(1 - LEVELS, 0)
    return nearest_levels(groups, scale, low, name), low
