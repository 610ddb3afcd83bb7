"""Conversion to 16-bit floating point, without calibration."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Forecast, Workload, forecast_reading, with_compared
from tasks.shared.model.agreement import compare_logits, logits_of
from tasks.shared.model.calibration import calibration_ids, split_calibration
from tasks.shared.model.dense import check_dense
from tasks.shared.model.masks import carry_masks
from tasks.shared.model.widths import shortened
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun

SECONDS_PER_WEIGHT = 5e-8
"""Time to convert and save, by measurement on two CPU cores."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Cast:
    """Store every weight as a 16-bit float; a GGUF file becomes a folder."""

    dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """bfloat16 has the range of float32 and 8 significant bits; float16 has 11, up to 65,504, and runs on older GPUs."""
    check_rows: Annotated[int, Field(ge=1)] = 8
    """Calibration conversations on which the written model is compared with its source, if a corpus is given."""
    max_tokens: Annotated[int, Field(ge=8)] = 192
    """Most tokens per conversation; longer ones are truncated."""

    spec: ClassVar[Spec] = Spec(
        summary="Weights as 16-bit floating point numbers (bfloat16 or float16), without calibration",
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,), optional=True)},
        produces=Kind.MODEL,
        libraries=("torch", "transformers", "tokenizers", "gguf"),
        accepts="dense",
        gives="dense",
    )

    def forecast(self, work: Workload) -> Forecast:
        """Forecast seconds by the number of weights, and two bytes for each."""
        size = work.size()
        found = forecast_reading(work, SECONDS_PER_WEIGHT * size.parameters, size.parameters, size.saved())
        return with_compared(found, work, self.check_rows, self.max_tokens)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write a dense folder to `out`.

        Returns size_bytes and, if a corpus is given, the figures of `compare_logits`.
        Raises TechniqueError for weights beyond the range of the type, of which it would make infinities.
        """
        import torch

        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.saving import save_model
        from tasks.shared.model.sizes import weight_bytes

        torch.set_num_threads(run.compute.threads)
        source, corpus = inputs.one("model").path, inputs.get("calibration")
        check_dense(source)
        model, tokenizer = load_model(source), load_tokenizer(source, chat=False)
        limit = torch.finfo(getattr(torch, self.dtype)).max
        beyond = [name for name, weight in model.named_parameters() if not float(weight.detach().abs().max()) <= limit]
        if beyond:
            raise TechniqueError(
                "dtype", f"{self.dtype} ends at {limit:g}, below weights of {shortened(beyond)}", "weights within its range", "dtype=bfloat16"
            )  # fmt: skip
        rows = split_calibration(corpus.path, 0, self.check_rows)[1] if corpus else []
        ids = calibration_ids(tokenizer, rows, self.max_tokens)
        source_logits = logits_of(model, ids)
        save_model(model, tokenizer, out, self.dtype)
        del model
        carried = carry_masks(source, out)
        measured = compare_logits(load_model(out), source_logits, ids, str(out)) if ids else {}
        return {"size_bytes": weight_bytes(out), **measured, **carried}
