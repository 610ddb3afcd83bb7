"""GPTQ on the levels of llama.cpp's types, which `export/gguf` copies unchanged.

Source: Frantar et al. 2023, arXiv 2210.17323; levels from github.com/ggml-org/llama.cpp.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.quantize.comparison import compare_with_rounding, rounded_to_levels
from tasks.quantize.error_feedback import fitted_scales, ordered_factor, output_error, rounded_to, with_feedback
from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Forecast, Workload, forecast_reading, with_compared
from tasks.shared.model.agreement import compare_logits, logits_of, mean_divergence
from tasks.shared.model.calibration import batches, calibration_ids, split_calibration
from tasks.shared.model.dense import check_dense
from tasks.shared.model.families import CONV1D, check_family, has_parts, is_mixture
from tasks.shared.model.grids import BLOCK, BLOCKS, Grid, own_grid
from tasks.shared.model.input_statistics import gram
from tasks.shared.model.layer_walk import walk_layers
from tasks.shared.model.layout import decoder_layers
from tasks.shared.model.linear_layers import input_sizes
from tasks.shared.model.masks import carry_masks, hold_zeros, read_masks, zeros_of
from tasks.shared.model.widths import ragged, shortened
from tasks.shared.progress import track
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Refusal, Spec, StepRun

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
ROWS = 8
"""Conversations per forward pass."""
SECONDS_PER_WEIGHT = 8e-7
"""Time to round a weight with error feedback on one thread, by measurement on a CPU."""
NEAREST_SECONDS_PER_WEIGHT = 1.2e-8
"""Time to round a weight to the nearest level on one thread, by measurement on a CPU; the comparison does so for every conversation."""
COMPARED = 3
"""Models that read the conversations of the comparison: the source, the source rounded, and the written one."""
STORED_BYTES = 4
"""Of a weight: a level times its scale has more digits than bfloat16."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class GptqLevels:
    """Round all linear layers but the head to a GGUF type's levels, calibrated on conversations.

    The folder is dense, in float32, and as large as that; `export/gguf` with `scheme` set to the grid copies levels and scales.
    """

    grid: Literal["iq4_nl", "q4_0", "q2_0", "tq2_0"] = "iq4_nl"
    """Levels.  iq4_nl: 16 uneven ones, closer to the weights.  q4_0: even ones, which every build of llama.cpp reads.  q2_0, tq2_0: four, in blocks of 64
    and 256, and iq4_nl's for matrices whose rows these do not fill; 2 bits are meant for training (`qat` of `distill/`)."""
    calibration_rows: Annotated[int, Field(ge=1)] = 64
    """Conversations of the calibration split, answers included."""
    damping: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Damping added to the Hessian's diagonal, as a fraction of its mean."""
    check_rows: Annotated[int, Field(ge=1)] = 8
    """Conversations of the calibration split, held out of the calibration, on which the written model is compared with its source."""
    max_tokens: Annotated[int, Field(ge=8)] = 192
    """Most tokens per calibration conversation; longer ones are truncated."""

    spec: ClassVar[Spec] = Spec(
        summary="GPTQ on the levels of llama.cpp's iq4_nl, q4_0 or 2-bit types, which export/gguf copies",
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,))},
        produces=Kind.MODEL,
        libraries=("torch", "transformers", "tokenizers", "gguf"),
        device="accelerator",
        accepts="dense",
        gives="dense",
        paper="Frantar et al. 2023, arXiv 2210.17323",
    )

    @property
    def weight_grid(self) -> Grid:
        """The grid of the written weights."""
        return Grid(self.grid, BLOCKS[self.grid])

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse models whose matrices are not one linear layer each."""
        if has_parts(config):
            return Refusal("several parts; its layers are those of the language model within", "a text-only model")
        if config.get("model_type") in CONV1D:
            return Refusal("its matrices are Conv1D, with inputs first", "export/gguf")
        if is_mixture(config):
            return Refusal(
                "its experts are stacked in one tensor, and each expert sees only some of the tokens", "export/gguf"
            )
        return None

    def check_widths(self, widths: Mapping[str, int]) -> None:
        """Refuse widths that are no multiples of the types' blocks."""
        if odd := ragged({name: width for name, width in widths.items() if own_grid(self.grid, width) is None}, BLOCK):
            raise TechniqueError(
                "grid", f"blocks of {BLOCK} weights do not divide {shortened(odd)}", f"multiples of {BLOCK}", "quantize/gptq, or export/gguf with scheme=f16"
            )  # fmt: skip

    def forecast(self, work: Workload) -> Forecast:
        """Forecast calibration, rounding on one thread and comparison, and a file in float32."""
        size = work.size()
        conversations = self.calibration_rows + COMPARED * self.check_rows
        rounding = SECONDS_PER_WEIGHT + NEAREST_SECONDS_PER_WEIGHT * self.check_rows
        seconds = work.reading(size, conversations * self.max_tokens) + rounding * size.parameters
        found = forecast_reading(work, seconds, size.parameters, replace(size, bytes=STORED_BYTES * size.parameters))
        return with_compared(found, work, self.check_rows, self.max_tokens)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write a dense folder in float32 to `out`.

        Returns size_bytes, calibration_tokens, output_error and rounding_error (squared error of the layers' outputs on the calibration rows, as
        a share of their squares, with and without error feedback), and the figures of `compare_logits` and `compare_with_rounding`.
        Weights that pruning masked stay zero; iq4_nl has no zero, and where it takes one of them the record of the masks is dropped with a warning.
        Raises TechniqueError for widths that blocks do not divide, and Hessians that are not positive definite.
        """
        import torch

        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.saving import save_model
        from tasks.shared.model.sizes import weight_bytes

        torch.set_num_threads(run.compute.threads)
        source = inputs.one("model").path
        check_dense(source)
        masks = read_masks(source)
        rows, held_out = split_calibration(inputs.one("calibration").path, self.calibration_rows, self.check_rows)
        model, tokenizer = load_model(source, device=run.compute.device), load_tokenizer(source, chat=False)
        check_family(self, model.config.to_dict(), str(source))
        self.check_widths(input_sizes(model))
        ids, checks = (calibration_ids(tokenizer, part, self.max_tokens) for part in (rows, held_out))
        source_logits = logits_of(model, checks)
        with rounded_to_levels(model, self.grid, input_sizes(model)):
            rounding = mean_divergence(model, source_logits, checks)
        zeros, with_zero = zeros_of(model, masks), self.has_zero(input_sizes(model), masks.tensors if masks else ())
        figures = self.round(model, ids, int(tokenizer.pad_token_id or 0))
        if masks and with_zero:
            figures["zeros_refilled"] = round(hold_zeros(model, zeros), 4)
        elif masks:
            log.warning("iq4_nl has no zero: masked weights become the level next to it, and the masks end here")
        save_model(model, tokenizer, out, "float32")
        del model
        if with_zero:
            figures |= carry_masks(source, out)
        measured = compare_logits(load_model(out), source_logits, checks, str(out))
        ways = f"larger damping, more calibration rows or export/gguf with scheme={self.grid}"
        measured |= compare_with_rounding(measured["kl_to_source"], rounding, ways)
        return {"size_bytes": weight_bytes(out), "calibration_tokens": sum(map(len, ids)), **figures, **measured}

    def has_zero(self, widths: Mapping[str, int], masked: Collection[str]) -> bool:
        """Return True if the grid of every masked matrix has a zero.

        widths: input sizes by layer.  masked: names of weights.
        """
        grids = [own_grid(self.grid, width) for name, width in widths.items() if f"{name}.weight" in masked]
        return all(grid is not None and grid.name != "iq4_nl" for grid in grids)

    def round(self, model: "PreTrainedModel", ids: list[list[int]], pad_id: int) -> Metrics:
        """Round the model's linear layers in place, and return the errors of their outputs.

        Each decoder layer reads what the rounded ones before it give.
        """
        import torch

        wanted, done = input_sizes(model), 0
        total = {"outputs": 0.0, "feedback": 0.0, "rounding": 0.0}
        visits = walk_layers(model, batches(ids, ROWS, pad_id))
        for visit in track(visits, "rounding", len(decoder_layers(model))):
            parts = {name: part for name, part in visit.layer.named_modules() if isinstance(part, torch.nn.Linear)}
            products = visit.input_sums(parts, gram)
            done += len(products)
            distinct = {id(found): found for found in products.values()}  # matrices with the same inputs share one
            ordered = {key: ordered_factor(found, self.damping) for key, found in distinct.items()}
            threads = torch.get_num_threads()
            # It is thousands of small operations, which threads that wait for each other make slower.
            torch.set_num_threads(1)
            try:
                for name, found in products.items():
                    errors = self.round_matrix(parts[name].weight.detach(), found, *ordered[id(found)])
                    total = {key: total[key] + error for key, error in errors.items()}
            finally:
                torch.set_num_threads(threads)
        if done != len(wanted):
            raise TechniqueError(
                type(model).__name__, f"{done} of {len(wanted)} linear layers are in the decoder layers and see tokens", "all of them", "quantize/gptq"
            )  # fmt: skip
        outputs = total["outputs"] or 1.0
        return {"output_error": total["feedback"] / outputs, "rounding_error": total["rounding"] / outputs}

    def round_matrix(self, weight: "Tensor", products: "Tensor", order: "Tensor", factor: "Tensor") -> dict[str, float]:
        """Round one matrix in place; return squares of its outputs and of their errors.

        weight: (out, in).  products: (in, in), float64, sum of products of its inputs.  order, factor: (in,) and (in, in), as
        `ordered_factor` returns them.
        """
        before, grid = weight.float(), own_grid(self.grid, weight.shape[1])
        assert grid is not None  # by `check_widths`
        scale, low = fitted_scales(before, products.diagonal(), grid)
        found = with_feedback(before, order, factor, scale, low, grid)
        plain = rounded_to(before, scale, low, grid)
        changes = {"outputs": before, "feedback": found - before, "rounding": plain - before}
        errors = {name: output_error(change, products) for name, change in changes.items()}
        weight.copy_(found)  # last: `before` may share its memory
        return errors
