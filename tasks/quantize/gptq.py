"""GPTQ (Frantar et al. 2023, arXiv 2210.17323): integer weights with error compensation."""

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
class GPTQ:
    """Quantize every linear layer but the head to groups of small integers, calibrated on whole conversations."""

    bits: Literal[4, 8] = 4
    """Bits per weight; activations stay in floating point (W4A16, W8A16)."""
    group_size: Annotated[int, Field(ge=0, multiple_of=8)] = 0
    """Weights that share one scale; 0 takes the largest of 128, 64 and 32 that divides every layer."""
    symmetric: bool = True
    """Scale only; false adds a zero point per group."""
    calibration_rows: Annotated[int, Field(ge=1)] = 64
    """Conversations of the calibration split, answers included."""
    max_tokens: Annotated[int, Field(ge=8)] = 192
    """Tokens per conversation; the rest is cut."""
    damping: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Added to the Hessian's diagonal, as a fraction of its mean."""
    actorder: Literal["static", "group", "none"] = "static"
    """Quantize the columns with the largest activations first; "group" also regroups them, which some engines run slower."""
    check_rows: Annotated[int, Field(ge=1)] = 8
    """Calibration conversations on which the written model is compared with its source."""

    spec: ClassVar[Spec] = Spec(
        summary="Calibrated 4- or 8-bit weights by llm-compressor's GPTQ",
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,))},
        produces=Kind.MODEL,
        libraries=("torch", "transformers", "llmcompressor", "compressed-tensors", "tokenizers", "gguf"),
        device="accelerator",
        accepts="dense",
        gives="packed",
        paper="Frantar et al. 2023, arXiv 2210.17323",
    )

    def forecast(self, work: Workload) -> Forecast:
        """Seconds by the number of weights; integers and scales in every layer."""
        return compressed.forecast_packing(work, self.bits, self.group_size, self.symmetric)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write a compressed-tensors folder (pack-quantized) to `out`.

        On one thread, as here, the same inputs give the same bytes (tests/contract/test_settings.py, on a tiny model).
        """
        compressed.quiet_import()
        import torch
        from llmcompressor.modifiers.gptq import GPTQModifier

        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.weights import weight_bytes

        source = inputs.one("model").path
        rows = calibration_rows(inputs.one("calibration").path, self.calibration_rows)
        model, tokenizer = load_model(source), load_tokenizer(source)
        compressed.check_dense(model, str(source))
        group = compressed.choose_group_size(compressed.input_sizes(model), self.group_size)
        log.info("group size %d (%s)", group, "as set" if self.group_size else "the largest that divides every layer")
        ids = calibration_ids(tokenizer, rows, self.max_tokens)
        checks = ids[:: max(1, len(ids) // self.check_rows)][
            : self.check_rows
        ]  # spread evenly, as round to nearest takes them
        source_logits = logits_of(model, checks)
        recipe = compressed.weight_recipe(self.bits, group, self.symmetric)
        modifier = GPTQModifier(
            **recipe, dampening_frac=self.damping, actorder=None if self.actorder == "none" else self.actorder
        )
        torch.manual_seed(run.seed)
        torch.set_num_threads(
            1
        )  # thousands of small operations: on a busy machine two threads wait for each other, ten times slower
        try:
            compressed.run_oneshot(model, tokenizer, modifier, run.scratch, ids)
        finally:
            torch.set_num_threads(run.compute.threads)
        compressed.save_compressed(model, tokenizer, out)
        measured = compressed.check_reload(out, checks, source_logits)
        return {
            "bits": self.bits,
            "group_size": group,
            "calibration_tokens": sum(map(len, ids)),
            "size_bytes": weight_bytes(out),
            **measured,
        }
