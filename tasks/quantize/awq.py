"""AWQ through llm-compressor: channels with large activations are scaled to round finer.

Source: Lin et al. 2024, arXiv 2306.00978.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.quantize.llm_compressor import Recipe, WeightOnly, calibrated_seconds, packing_spec, quantize, quiet_import
from tasks.quantize.smoothing import smoothing_asserted, smoothing_pairs, unknown_norms
from tasks.shared.forecast import Forecast, Workload
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Refusal, Spec, StepRun


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class AWQ(WeightOnly):
    """Scale channels by their activations, then round all linear layers but the head."""

    calibration_rows: Annotated[int, Field(ge=1)] = 32
    """Conversations of the calibration split, answers included."""
    grid: Annotated[int, Field(ge=3, le=40)] = 10
    """Strengths of the scaling to try for each norm and projection, no scaling among them; time grows with it."""

    spec: ClassVar[Spec] = packing_spec(
        summary="4- or 8-bit weights whose channels are scaled by their activations first (AWQ), by llm-compressor",
        calibration=Port((Kind.CORPUS,)),
        paper="Lin et al. 2024, arXiv 2306.00978",
    )

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse families that cannot be packed, or whose norms are unknown."""
        return super().refuses(config) or unknown_norms(config)

    def forecast(self, work: Workload) -> Forecast:
        """Forecast a pass of every block per strength, and integers and scales in every layer."""
        passes = 2 * self.grid * self.calibration_rows * self.max_tokens
        return calibrated_seconds(super().forecast(work), work, passes)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write a compressed-tensors folder (pack-quantized) to `out`."""
        quiet_import()
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier

        def build(model: Any, arguments: Mapping[str, Any], _ids: object) -> Recipe:
            pairs = smoothing_pairs(model, inner=True)
            mappings = [AWQMapping(*pair.patterns()) for pair in pairs]
            modifiers = [AWQModifier(mappings=mappings, n_grid=self.grid), QuantizationModifier(**arguments)]
            return Recipe(modifiers, smoothing_asserted(model, pairs, always=False))

        return quantize(self, inputs, out, run, build, self.calibration_rows)
