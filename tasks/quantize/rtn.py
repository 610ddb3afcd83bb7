"""Round to nearest through llm-compressor: integer weights without calibration; a floor for GPTQ to beat, done in seconds."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from tasks.quantize.compressed import WeightOnly, quantize, quiet_import
from tasks.shared.technique import Inputs, Kind, Metrics, Port, StepRun


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class RTN(WeightOnly):
    """Quantize every linear layer but the head by rounding each weight to its group's nearest step."""

    ports: ClassVar[Mapping[str, Port]] = {
        "model": Port((Kind.MODEL,)),
        "calibration": Port((Kind.CORPUS,), optional=True),
    }
    produces: ClassVar[Kind] = Kind.MODEL
    libraries: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "llmcompressor",
        "compressed-tensors",
        "tokenizers",
        "gguf",
    )

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write a compressed-tensors folder (pack-quantized) to `out`."""
        quiet_import()
        from llmcompressor.modifiers.quantization import QuantizationModifier

        return quantize(self, inputs, out, run, QuantizationModifier)
