"""4-bit floats through llm-compressor: NVFP4 and MXFP4.

Sources: NVIDIA 2025, arXiv 2509.25149, section 2 (NVFP4); Rouhani et al. 2023, arXiv 2310.10537 (MXFP4).

Both store weights as E2M1 floats (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives).  NVFP4 has an 8-bit float as the scale of 16 weights
and a 32-bit one per matrix; MXFP4 has a power of two for 32 weights, which fits them less closely.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.quantize.groups import forecast_packing
from tasks.quantize.llm_compressor import Packed, Recipe, packing_spec, quantize, quiet_import
from tasks.shared.errors import ConfigError, StillroomError
from tasks.shared.forecast import Forecast, Workload, with_compared
from tasks.shared.model.widths import check_groups
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun, Upstream

GROUPS = {"nvfp4": 16, "mxfp4": 32}
"""Weights that share a scale."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FP4(Packed):
    """Store 4-bit floats in small groups, which recent GPUs multiply and all others unpack."""

    format: Literal["nvfp4", "mxfp4"] = "nvfp4"
    """nvfp4: 16 weights share an 8-bit float (4.5 bits per weight).  mxfp4: 32 share a power of two (4.25 bits)."""
    activations: Literal["none", "dynamic"] = "none"
    """none: activations stay in 16 bits.  dynamic: 4-bit floats of the same kind as they are computed, for GPUs with FP4 units; nvfp4 takes
    the range of each layer's inputs from calibration."""
    calibration_rows: Annotated[int, Field(ge=1)] = 64
    """Conversations of the calibration split for the ranges of nvfp4's activations; nothing else needs any."""

    spec: ClassVar[Spec] = packing_spec(
        summary="4-bit floating point weights (NVFP4, MXFP4), activations too if set, for GPUs with FP4 units, by llm-compressor",
        calibration=Port((Kind.CORPUS,), optional=True),
        paper="NVIDIA 2025, arXiv 2509.25149; Rouhani et al. 2023, arXiv 2310.10537",
    )

    @property
    def rows(self) -> int:
        """Number of conversations that the scales need."""
        return self.calibration_rows if (self.format, self.activations) == ("nvfp4", "dynamic") else 0

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[StillroomError]:
        """Yield an error for activations of nvfp4 without a corpus."""
        if self.rows and not inputs.get("calibration"):
            yield self._needs_corpus(f"{where}.inputs.calibration")

    def forecast(self, work: Workload) -> Forecast:
        """Forecast seconds by the number of weights, and 4 bits and a scale of 8 per group."""
        group = GROUPS[self.format]
        found = forecast_packing(work, 4, 2 * group, True)  # its scales have 16 bits
        found = replace(found, size=None if found.size is None else replace(found.size, levels=self.format))
        return with_compared(found, work, self.check_rows, self.max_tokens)

    def check_widths(self, widths: Mapping[str, int]) -> None:
        """Refuse known widths that are no multiple of the format's groups."""
        check_groups(widths, GROUPS[self.format], self.format)

    def scheme(self, widths: Mapping[str, int]) -> tuple[dict[str, Any], Metrics]:
        """Return E2M1 floats in groups, as compressed-tensors defines the format.

        Raises TechniqueError if the groups do not divide the widths.
        """
        from compressed_tensors.quantization import preset_name_to_scheme

        self.check_widths(widths)
        preset = preset_name_to_scheme(self.format.upper(), ["Linear"]).model_dump(exclude_none=True)
        names = ("weights", "input_activations") if self.activations == "dynamic" else ("weights",)
        return {name: preset[name] for name in names}, {"bits": 4, "group_size": GROUPS[self.format]}

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write a compressed-tensors folder (nvfp4- or mxfp4-pack-quantized) to `out`.

        Raises ConfigError for activations of nvfp4 without a corpus.
        """
        if self.rows and inputs.get("calibration") is None:
            raise self._needs_corpus("inputs.calibration")
        quiet_import()
        from llmcompressor.modifiers.quantization import QuantizationModifier

        def build(model: Any, arguments: Mapping[str, Any], _ids: object) -> Recipe:
            return Recipe([QuantizationModifier(**arguments)])

        return quantize(self, inputs, out, run, build, self.rows, compare=False)

    def _needs_corpus(self, where: str) -> ConfigError:
        return ConfigError(
            where,
            "no corpus, and activations=dynamic with nvfp4",
            "a corpus from which the ranges of the inputs are taken",
            "activations=none, or format=mxfp4",
        )
