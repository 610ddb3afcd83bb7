"""Round to nearest through llm-compressor: integer weights in seconds, without calibration.

It is the baseline for calibrated techniques.
"""

from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from tasks.quantize.llm_compressor import Recipe, WeightOnly, packing_spec, quantize, quiet_import
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class RTN(WeightOnly):
    """Quantize all linear layers but the head by rounding weights to their group's nearest step."""

    spec: ClassVar[Spec] = packing_spec(
        summary="4- or 8-bit weights by rounding to nearest, in seconds and without calibration",
        calibration=Port((Kind.CORPUS,), optional=True),
    )

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write a compressed-tensors folder (pack-quantized) to `out`."""
        quiet_import()
        from llmcompressor.modifiers.quantization import QuantizationModifier

        return quantize(self, inputs, out, run, lambda _, arguments: Recipe([QuantizationModifier(**arguments)]))
