"""FP8 through llm-compressor: weights and activations as 8-bit floats (E4M3).

Source: Micikevicius et al. 2022, arXiv 2209.05433.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.quantize.llm_compressor import EightBit, Recipe, packing_spec, quantize, quiet_import
from tasks.shared.errors import ConfigError
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FP8(EightBit):
    """Store 8-bit floats with a scale per output; activations get dynamic or fixed scales."""

    activations: Literal["dynamic", "static"] = "dynamic"
    """Scales of the activations: "dynamic" one per token as it is computed, "static" one per layer from calibration, for faster kernels."""
    calibration_rows: Annotated[int, Field(ge=1)] = 64
    """Conversations of the calibration split for static scales; dynamic ones need none."""

    spec: ClassVar[Spec] = packing_spec(
        summary="8-bit floating point weights and activations (FP8), for GPUs with FP8 units, by llm-compressor",
        calibration=Port((Kind.CORPUS,), optional=True),
        paper="Micikevicius et al. 2022, arXiv 2209.05433",
    )

    def scheme(self, widths: Mapping[str, int]) -> tuple[dict[str, Any], Metrics]:
        """Return E4M3 floats: weights by output channel, activations by token or layer."""
        weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
        static = self.activations == "static"
        inputs = {"strategy": "tensor", "dynamic": False} if static else {"strategy": "token", "dynamic": True}
        return {"weights": weights, "input_activations": weights | inputs}, {"bits": 8}

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write a compressed-tensors folder (float-quantized) to `out`.

        Raises ConfigError for static scales without a corpus.
        """
        if self.activations == "static" and inputs.get("calibration") is None:
            raise ConfigError(
                "inputs.calibration",
                "no corpus, and activations=static",
                "a corpus to calibrate on",
                "activations=dynamic",
            )
        quiet_import()
        from llmcompressor.modifiers.quantization import QuantizationModifier

        def build(model: Any, arguments: Mapping[str, Any]) -> Recipe:
            return Recipe([QuantizationModifier(**arguments)])

        rows = self.calibration_rows if self.activations == "static" else 0
        return quantize(self, inputs, out, run, build, rows, compare=False)
