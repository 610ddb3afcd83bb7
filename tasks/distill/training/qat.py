"""Settings of quantization-aware training: weights that are trained through their rounding."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.shared.errors import ConfigError, TechniqueError
from tasks.shared.model.grids import BLOCK, Grid, GridName
from tasks.shared.model.widths import choose_group_size

if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCKED = ("q4_0", "iq4_nl")
"""Grids of llama.cpp alone, whose blocks have one size."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Qat:
    """Rounding of the linear layers to 4 bits in every pass; gradients go straight through."""

    grid: GridName | Literal["none"] = "none"
    """Grid of the rounded weights.  int4_symmetric and int4_asymmetric: what `quantize/rtn` packs, and q4_0 and q4_1 hold, unchanged.
    q4_0, iq4_nl: llama.cpp's own, closer to the weights, for `export/gguf` alone.  none: no rounding."""
    group_size: Annotated[int, Field(ge=0, multiple_of=8)] = 0
    """Weights that share one scale, as in `quantize/rtn`; 0 takes the largest of 128, 64 and 32 that divides every layer, and 32, the
    block of GGUF's types, for q4_0 and iq4_nl."""
    scales: Literal["extremes", "learned"] = "extremes"
    """Scales of the groups: from the extremes of their weights, or these times a factor that is learned with the weights."""

    def __post_init__(self) -> None:
        """Raise ConfigError for groups that llama.cpp's blocks cannot hold."""
        if self.grid in BLOCKED and self.group_size not in (0, BLOCK):
            got = f"{self.group_size} for {self.grid}"
            raise ConfigError("qat.group_size", got, f"{BLOCK}, the block of this type", "qat.group_size: 0")

    @property
    def weight_grid(self) -> Grid | None:
        """The grid as set; None without one."""
        if self.grid == "none":
            return None
        return Grid(self.grid, BLOCK if self.grid in BLOCKED else self.group_size)

    def fitting_grid(self, widths: "Mapping[str, int]") -> Grid | None:
        """Return the grid with groups that divide all widths; None without a grid.

        widths: input sizes of the layers.  Raises TechniqueError if the groups do not divide them.
        """
        grid = self.weight_grid
        if grid is None:
            return None
        try:
            return Grid(grid.name, choose_group_size(widths, grid.group))
        except TechniqueError as error:
            instead = error.fix if grid.name not in BLOCKED else "qat.grid=int4_symmetric with a group_size that does"
            raise TechniqueError("qat.group_size", error.got, error.wanted, instead) from error
