"""Round to nearest through llm-compressor: integer weights in seconds, without calibration.

It is the baseline for calibrated techniques.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from tasks.quantize.kept_grid import grid_kept
from tasks.quantize.llm_compressor import Recipe, WeightOnly, packing_spec, quantize, quiet_import
from tasks.shared.model.grids import Grid, GridName
from tasks.shared.model.linear_layers import input_sizes
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class RTN(WeightOnly):
    """Quantize all linear layers but the head by rounding weights to their group's nearest step.

    Layers whose weights are 4-bit integers times a scale already, as a training with `qat` writes them, keep their integers.
    """

    spec: ClassVar[Spec] = packing_spec(
        summary="4- or 8-bit weights by rounding to nearest, in seconds and without calibration",
        calibration=Port((Kind.CORPUS,), optional=True),
    )

    def keeps(self, grid: Grid) -> bool:
        """Return True for the grid of these settings."""
        name: GridName = "int4_symmetric" if self.scales_only else "int4_asymmetric"
        return self.bits == 4 and grid == Grid(name, self.group_size)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write a compressed-tensors folder (pack-quantized) to `out`."""
        quiet_import()
        from llmcompressor.modifiers.quantization import QuantizationModifier

        def build(model: "PreTrainedModel", arguments: Mapping[str, Any], _ids: object) -> Recipe:
            kept = grid_kept(model, arguments["config_groups"]["group_0"]["weights"], input_sizes(model))
            return Recipe([QuantizationModifier(**arguments)], kept)

        return quantize(self, inputs, out, run, build)
