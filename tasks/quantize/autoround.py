"""AutoRound: rounding of weights and ranges of groups, learned by signed gradient descent.

Source: Cheng et al. 2024, arXiv 2309.05516.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.quantize.learned_rounding import Tuning, learn_rounding, levels_kept
from tasks.quantize.llm_compressor import Recipe, WeightOnly, calibrated_seconds, packing_spec, quantize, quiet_import
from tasks.shared.forecast import Forecast, Workload
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PASSES = 3.0
"""Cost of an iteration in forward passes: one forward and one backward."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class AutoRound(WeightOnly):
    """Learn how the weights of all linear layers but the head are rounded, block by block."""

    bits: Literal[2, 3, 4] = 4
    """Bits per weight; activations stay in floating point.  vLLM has no kernel for 2 and 3 bits."""
    calibration_rows: Annotated[int, Field(ge=1)] = 64
    """Conversations of the calibration split, answers included."""
    iterations: Annotated[int, Field(ge=1)] = 200
    """Steps of gradient descent per block; time grows with them. On two CPU cores, 200 take over an hour for 135M weights."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Calibration conversations per step, drawn at random."""
    learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Change of a rounding value per step, in quantization steps; the values range from -0.5 to 0.5.  0: 1 / iterations, twice that at 2 bits."""

    spec: ClassVar[Spec] = packing_spec(
        summary="2-, 3- or 4-bit weights whose rounding is learned block by block (AutoRound), by auto-round",
        calibration=Port((Kind.CORPUS,)),
        paper="Cheng et al. 2024, arXiv 2309.05516",
        libraries=("auto-round",),
    )

    def forecast(self, work: Workload) -> Forecast:
        """Forecast the iterations over every block, and integers and scales in every layer."""
        tokens = PASSES * self.iterations * self.batch_size * self.max_tokens
        return calibrated_seconds(super().forecast(work), work, tokens)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write a compressed-tensors folder (pack-quantized) to `out`.

        Raises TechniqueError for a layer that auto-round left as it was.
        """
        quiet_import()
        from llmcompressor.modifiers.quantization import QuantizationModifier

        from tasks.shared.model.loading import load_tokenizer

        tokenizer = load_tokenizer(inputs.one("model").path, chat=False)

        def build(model: "PreTrainedModel", arguments: Mapping[str, Any], ids: Sequence[Sequence[int]]) -> Recipe:
            group = int(arguments["config_groups"]["group_0"]["weights"]["group_size"])
            tuning = Tuning(
                self.bits, group, self.scales_only, self.iterations, self.batch_size, self.learning_rate, run.seed
            )
            levels = learn_rounding(model, tokenizer, ids, tuning, run.compute)
            return Recipe([QuantizationModifier(**arguments)], levels_kept(model, levels), reads_rows=False)

        return quantize(self, inputs, out, run, build, self.calibration_rows)
