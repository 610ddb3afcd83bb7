"""Round to nearest: integer weights without calibration, a fast baseline for GPTQ."""

import logging
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.quantize import compressed
from tasks.shared.forecast import Forecast, Workload
from tasks.shared.model.agreement import logits_of
from tasks.shared.model.calibration import calibration_ids, calibration_rows
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class RTN:
    """Quantize every linear layer but the head by rounding each weight to its group's nearest step."""

    bits: Literal[4, 8] = 4
    """Bits per weight; activations stay in floating point (W4A16, W8A16)."""
    group_size: Annotated[int, Field(ge=0, multiple_of=8)] = 0
    """Weights that share one scale; 0 takes the largest of 128, 64 and 32 that divides every layer."""
    symmetric: bool = True
    """Scale only; false adds a zero point per group."""
    check_rows: Annotated[int, Field(ge=1)] = 8
    """Calibration conversations on which the written model is compared with its source, if a corpus is given."""
    max_tokens: Annotated[int, Field(ge=8)] = 192
    """Tokens per conversation in that comparison."""

    spec: ClassVar[Spec] = Spec(
        summary="4- or 8-bit weights by rounding to nearest, in seconds and without calibration",
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,), optional=True)},
        produces=Kind.MODEL,
        libraries=("torch", "transformers", "llmcompressor", "compressed-tensors", "tokenizers", "gguf"),
        device="accelerator",
        accepts="dense",
        gives="packed",
    )

    def forecast(self, work: Workload) -> Forecast:
        """Seconds by the number of weights; integers and scales in every layer."""
        return compressed.forecast_packing(work, self.bits, self.group_size, self.symmetric)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write a compressed-tensors folder (pack-quantized) to `out`."""
        compressed.quiet_import()
        import torch
        from llmcompressor.modifiers.quantization import QuantizationModifier

        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.weights import weight_bytes

        torch.set_num_threads(run.compute.threads)
        source, corpus = inputs.one("model").path, inputs.get("calibration")
        model, tokenizer = load_model(source), load_tokenizer(source)
        compressed.check_dense(model, str(source))
        group = compressed.choose_group_size(compressed.input_sizes(model), self.group_size)
        log.info("group size %d (%s)", group, "as set" if self.group_size else "the largest that divides every layer")
        checks = (
            calibration_ids(tokenizer, calibration_rows(corpus.path, self.check_rows), self.max_tokens)
            if corpus
            else []
        )
        source_logits = logits_of(model, checks)
        compressed.run_oneshot(
            model,
            tokenizer,
            QuantizationModifier(**compressed.weight_recipe(self.bits, group, self.symmetric)),
            run.scratch,
        )
        compressed.save_compressed(model, tokenizer, out)
        measured = compressed.check_reload(out, checks, source_logits) if checks else {}
        return {"bits": self.bits, "group_size": group, "size_bytes": weight_bytes(out), **measured}
