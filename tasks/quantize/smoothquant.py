"""SmoothQuant through llm-compressor: outliers of activations move into 8-bit weights.

Source: Xiao et al. 2023, arXiv 2211.10438.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.quantize.llm_compressor import EightBit, Recipe, packing_spec, quantize, quiet_import
from tasks.quantize.smoothing import Pair, smoothing_asserted, smoothing_pairs, unknown_norms
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Refusal, Spec, StepRun


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SmoothQuant(EightBit):
    """Smooth activations, then store 8-bit weights with a scale per output.

    Activations are rounded to 8 bits as they are computed, with a scale per token.
    """

    calibration_rows: Annotated[int, Field(ge=1)] = 64
    """Conversations of the calibration split, answers included."""
    strength: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the activations' range that moves into the weights (alpha)."""
    rounding: Literal["nearest", "gptq"] = "nearest"
    """Rounding of the weights; "gptq" compensates rounding errors, which 8 bits rarely need."""

    spec: ClassVar[Spec] = packing_spec(
        summary="8-bit weights and activations (W8A8), outliers of the activations moved into the weights, by llm-compressor",
        calibration=Port((Kind.CORPUS,)),
        paper="Xiao et al. 2023, arXiv 2211.10438",
    )

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse families that cannot be packed, or whose norms are unknown."""
        return super().refuses(config) or unknown_norms(config)

    def scheme(self, widths: Mapping[str, int]) -> tuple[dict[str, Any], Metrics]:
        """Return signed integers: weights by output channel, activations by token."""
        weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
        return {"weights": weights, "input_activations": weights | {"strategy": "token", "dynamic": True}}, {"bits": 8}

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write a compressed-tensors folder (int-quantized) to `out`."""
        quiet_import()
        from llmcompressor.modifiers.gptq import GPTQModifier
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

        def build(model: Any, arguments: Mapping[str, Any], _ids: object) -> Recipe:
            pairs = smoothing_pairs(model, inner=False)
            mappings: list[Any] = [(readers, smoothed) for smoothed, readers in map(Pair.patterns, pairs)]
            smooth = SmoothQuantModifier(smoothing_strength=self.strength, mappings=mappings)
            rounding = GPTQModifier if self.rounding == "gptq" else QuantizationModifier
            return Recipe([smooth, rounding(**arguments)], smoothing_asserted(model, pairs, always=True))

        return quantize(self, inputs, out, run, build, self.calibration_rows)
