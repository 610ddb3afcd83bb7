"""Settings of quantization-aware training: weights that are trained through their rounding."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.shared.errors import ConfigError, TechniqueError
from tasks.shared.model.grids import BLOCK, BLOCKS, Grid, GridName, is_two_bits, own_grid
from tasks.shared.model.widths import choose_group_size, ragged, shortened

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Qat:
    """Rounding of the linear layers to 4 or 2 bits in every pass; gradients go straight through."""

    grid: GridName | Literal["none"] = "none"
    """Grid of the rounded weights.  int4_symmetric and int4_asymmetric: what `quantize/rtn` packs, and q4_0 and q4_1 hold, unchanged.
    q4_0, iq4_nl: llama.cpp's own, closer to the weights, for `export/gguf` alone.  q2_0, tq2_0: its 2 bits, the levels -1 to 2 of a scale, in blocks of
    64 and 256; matrices whose rows these do not fill are rounded to iq4_nl.  none: no rounding."""
    group_size: Annotated[int, Field(ge=0, multiple_of=8)] = 0
    """Weights that share one scale, as in `quantize/rtn`; 0 takes the largest of 128, 64 and 32 that divides every layer, and
    for llama.cpp's own grids their block."""
    scales: Literal["extremes", "learned"] = "extremes"
    """Scales of the groups: from the extremes of their weights (at 2 bits their mean magnitude), or these times a factor that is learned
    with the weights."""

    def __post_init__(self) -> None:
        """Raise ConfigError for groups that llama.cpp's blocks cannot hold."""
        block = None if self.grid == "none" else BLOCKS.get(self.grid)
        if block is not None and self.group_size not in (0, block):
            got = f"{self.group_size} for {self.grid}"
            raise ConfigError("qat.group_size", got, f"{block}, the block of this type", "qat.group_size: 0")

    @property
    def weight_grid(self) -> Grid | None:
        """The grid as set; None without one."""
        if self.grid == "none":
            return None
        return Grid(self.grid, BLOCKS.get(self.grid, self.group_size))

    def fitting_grids(self, widths: "Mapping[str, int]") -> dict[str, Grid]:
        """Return the grid of each layer, with groups that divide its width; none without a grid.

        widths: input sizes by layer.  Raises TechniqueError if the groups do not divide them.
        """
        if self.grid == "none":
            return {}
        if self.grid not in BLOCKS:
            try:
                grid = Grid(self.grid, choose_group_size(widths, self.group_size))
            except TechniqueError as error:
                raise TechniqueError("qat.group_size", error.got, error.wanted, error.fix) from error
            return dict.fromkeys(widths, grid)
        if not widths:
            choose_group_size(widths)  # says what is missing
        found = {name: own_grid(self.grid, width) for name, width in widths.items()}
        if bad := [name for name, grid in found.items() if grid is None]:
            least = BLOCK if is_two_bits(self.grid) else BLOCKS[self.grid]
            got = f"blocks of {least} do not divide {shortened(ragged({name: widths[name] for name in bad}, least))}"
            raise TechniqueError(
                "qat.grid", got, f"multiples of {least}", "qat.grid=int4_symmetric with a group_size that divides them"
            )
        return {name: grid for name, grid in found.items() if grid is not None}
