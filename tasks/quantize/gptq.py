"""GPTQ through llm-compressor: integer weights that compensate each other's rounding errors.

Source: Frantar et al. 2023, arXiv 2210.17323.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.quantize.llm_compressor import Recipe, WeightOnly, packing_spec, quantize, quiet_import
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class GPTQ(WeightOnly):
    """Quantize all linear layers but the head to integer groups, calibrated on conversations."""

    calibration_rows: Annotated[int, Field(ge=1)] = 64
    """Conversations of the calibration split, answers included."""
    damping: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Damping added to the Hessian's diagonal, as a fraction of its mean."""
    actorder: Literal["static", "group", "none"] = "static"
    """Quantize the columns with the largest activations first; "group" also groups by that order, which is slower in some engines."""

    spec: ClassVar[Spec] = packing_spec(
        summary="Calibrated 4- or 8-bit weights by llm-compressor's GPTQ",
        calibration=Port((Kind.CORPUS,)),
        paper="Frantar et al. 2023, arXiv 2210.17323",
    )

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write a compressed-tensors folder (pack-quantized) to `out`.

        The same inputs give the same bytes: calibration runs on one thread.
        """
        quiet_import()
        from llmcompressor.modifiers.gptq import GPTQModifier

        actorder = None if self.actorder == "none" else self.actorder

        def build(_: Any, arguments: Mapping[str, Any], _ids: object) -> Recipe:
            return Recipe([GPTQModifier(**arguments, dampening_frac=self.damping, actorder=actorder)])

        return quantize(self, inputs, out, run, build, self.calibration_rows)
