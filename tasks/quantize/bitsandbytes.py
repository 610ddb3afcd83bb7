"""bitsandbytes through transformers: 4-bit levels in blocks, or the integers of LLM.int8.

Sources: Dettmers et al. 2023 (QLoRA), arXiv 2305.14314; Dettmers et al. 2022 (LLM.int8), arXiv 2208.07339.
"""

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.shared.errors import StillroomError, TechniqueError
from tasks.shared.forecast import SAVED_BYTES, Dimensions, Forecast, Workload, forecast_reading, with_compared
from tasks.shared.model.agreement import compare_logits, logits_of
from tasks.shared.model.bitsandbytes_layers import loading_options
from tasks.shared.model.calibration import calibration_ids, split_calibration
from tasks.shared.model.dense import check_dense
from tasks.shared.model.families import check_family, is_mixture
from tasks.shared.model.grids import grid_problems
from tasks.shared.model.linear_layers import head_names
from tasks.shared.model.masks import read_masks
from tasks.shared.model.strict import one_message, refuse_misfit
from tasks.shared.model.weight_files import tensors_of
from tasks.shared.model.widths import check_groups, shortened
from tasks.shared.progress import no_foreign_bars
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Refusal, Spec, StepRun, Upstream

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK = 64
"""Consecutive weights of a 4-bit format that share a scale."""
SCALES = 256
"""Consecutive scales that share one in turn, with double quantization."""
OUTPUTS = 32
"""Outputs that the library's 4-bit kernel for CPUs with AVX-512 computes together; it fails at any other multiple."""
MATRICES = 7
"""Matrices of a decoder layer, for the forecast."""
TENSOR_BYTES = 125
"""Name, type, shape and place of a tensor in a file's header."""
LEVEL_BYTES, SCALE_LEVEL_BYTES = 64, 1024
"""Tables of levels that each matrix has: of its weights, and of its scales."""
STATE_BYTES, DOUBLE_STATE_BYTES = 90, 165
"""Block sizes, types and shape of a matrix, as text."""
SECONDS_PER_WEIGHT = 1e-7
"""Rough time to quantize, write and reload a weight on a CPU."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class BitsAndBytes:
    """Quantize all linear layers but the head with bitsandbytes, in seconds.

    The written folder is for transformers and peft, and needs bitsandbytes wherever it is loaded.
    """

    format: Literal["nf4", "fp4", "int8"] = "nf4"
    """nf4: 16 levels for normally distributed weights, in blocks of 64 (QLoRA).  fp4: 4-bit floats in such blocks, farther from the source.
    int8: integers with a scale per output (LLM.int8); inputs become integers too, but for channels with values beyond 6."""
    double_quantization: bool = True
    """nf4 and fp4: store the scales of blocks in 8 bits, so that a weight takes 4.13 bits instead of 4.5."""
    dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """Type of embedding, head and norms, and of the arithmetic of 4-bit layers; float16 for GPUs older than Ampere.  int8 computes in float16."""
    check_rows: Annotated[int, Field(ge=1)] = 8
    """Calibration conversations on which the written model is compared with its source, if a corpus is given."""
    max_tokens: Annotated[int, Field(ge=8)] = 192
    """Most tokens per conversation; longer ones are truncated."""

    spec: ClassVar[Spec] = Spec(
        summary="NF4, FP4 or LLM.int8 weights of bitsandbytes, for QLoRA and trials on a GPU, without calibration (extra `bitsandbytes`)",
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,), optional=True)},
        produces=Kind.MODEL,
        libraries=("torch", "transformers", "accelerate", "tokenizers", "gguf", "bitsandbytes"),
        extra="bitsandbytes",
        accepts="dense",
        gives="bitsandbytes",
        paper="Dettmers et al. 2023, arXiv 2305.14314; Dettmers et al. 2022, arXiv 2208.07339",
    )

    @property
    def four_bit(self) -> bool:
        """True for formats of 16 levels in blocks."""
        return self.format != "int8"

    def forecast(self, work: Workload) -> Forecast:
        """Forecast levels or integers, their scales and tables, and 16 bits for embedding and head."""
        size = work.size()
        shape = size.shape
        matrices = MATRICES * shape.layers
        rows = (shape.query + 2 * shape.value + 2 * shape.width + 2 * shape.feed_forward) * shape.layers
        weight, fixed = 1.0, 4.0 * rows + matrices * 3 * TENSOR_BYTES
        if self.four_bit and self.double_quantization:
            weight = 0.5 + (1 + 4 / SCALES) / BLOCK
            fixed = matrices * (LEVEL_BYTES + SCALE_LEVEL_BYTES + DOUBLE_STATE_BYTES + 6 * TENSOR_BYTES)
        elif self.four_bit:
            weight, fixed = 0.5 + 4 / BLOCK, matrices * (LEVEL_BYTES + STATE_BYTES + 4 * TENSOR_BYTES)
        packed = weight * (size.parameters - size.outer) + fixed + SAVED_BYTES * size.outer
        seconds = SECONDS_PER_WEIGHT * size.parameters
        found = forecast_reading(work, seconds, size.parameters, replace(size, bytes=packed))
        return with_compared(found, work, self.check_rows, self.max_tokens)

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse experts, and keys and values of a width that a 4-bit kernel does not take."""
        if is_mixture(config):
            return Refusal(
                "its experts are one tensor, which transformers leaves dense in such a folder", "export/gguf"
            )
        width = Dimensions.from_config({**config, **(config.get("text_config") or {})}).value
        if self.four_bit and width % OUTPUTS:
            return Refusal(
                f"keys and values of {width} channels; the 4-bit kernel for CPUs takes multiples of {OUTPUTS}",
                "format=int8",
            )
        return None

    def check_widths(self, widths: Mapping[str, int]) -> None:
        """Refuse input sizes that 4-bit blocks do not divide.

        There the kernel for CPUs fails, and a GPU takes a slow one.
        """
        if self.four_bit:
            check_groups(widths, BLOCK, self.format)

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[StillroomError]:
        """Yield an error for a model that was trained on a grid of other 4-bit levels."""
        if self.four_bit:
            yield from grid_problems(where, inputs, upstream, lambda grid: False)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write a folder that transformers with bitsandbytes loads to `out`.

        Weights that pruning masked stay zero in all formats.
        Returns size_bytes, masked_sparsity for a model with masks, and the figures of `compare_logits` if a corpus is given.
        Raises TechniqueError for a quantized model, matrices that do not fit the format, and weights beyond the range of float16 where it is used.
        """
        import torch

        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.saving import align_special_tokens, save_tokenizer
        from tasks.shared.model.sizes import weight_bytes

        torch.set_num_threads(run.compute.threads)
        source, corpus = inputs.one("model").path, inputs.get("calibration")
        check_dense(source)
        masks = read_masks(source)
        model, tokenizer = load_model(source), load_tokenizer(source, chat=False)
        check_family(self, model.config.to_dict(), str(source))
        shapes = matrix_shapes(model)
        self.check_shapes(shapes)
        self.check_range(model)
        rows = split_calibration(corpus.path, 0, self.check_rows)[1] if corpus else []
        ids = calibration_ids(tokenizer, rows, self.max_tokens)
        source_logits = logits_of(model, ids)
        align_special_tokens(model, tokenizer)
        packed = self.quantized(model, source)
        del model
        packed.save_pretrained(out)
        del packed
        save_tokenizer(tokenizer, out)
        check_stored(out, shapes)
        measured = compare_logits(load_model(out), source_logits, ids, str(out)) if ids else {}
        sparsity = {"masked_sparsity": round(masks.sparsity, 4)} if masks else {}
        return {"size_bytes": weight_bytes(out), **sparsity, **measured}

    def check_shapes(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Raise TechniqueError for matrices that 4-bit blocks or the kernel for CPUs do not fit."""
        self.check_widths({name: inputs for name, (inputs, _) in shapes.items()})
        odd = [f"{name} (out={outputs})" for name, (_, outputs) in shapes.items() if outputs % OUTPUTS]
        if self.four_bit and odd:
            raise TechniqueError(
                "format",
                f"the 4-bit kernel for CPUs computes {OUTPUTS} outputs together, which do not divide those of {shortened(odd)}",
                f"multiples of {OUTPUTS}",
                "format=int8",
            )

    def check_range(self, model: "PreTrainedModel") -> None:
        """Raise TechniqueError for weights that float16 would make infinite."""
        import torch

        if self.dtype != "float16" and self.four_bit:
            return
        limit = torch.finfo(torch.float16).max
        beyond = [name for name, weight in model.named_parameters() if not float(weight.detach().abs().max()) <= limit]
        if beyond:
            raise TechniqueError(
                "dtype" if self.dtype == "float16" else "format",
                f"float16 ends at {limit:g}, below weights of {shortened(beyond)}",
                "weights within its range",
                "format=nf4 and dtype=bfloat16",
            )

    def quantized(self, model: "PreTrainedModel", source: Path) -> "PreTrainedModel":
        """Return the model in its format, quantized on the CPU."""
        import torch
        from transformers import BitsAndBytesConfig

        settings: dict[str, Any] = {"load_in_8bit": True}
        if self.four_bit:
            settings = {
                "load_in_4bit": True, "bnb_4bit_quant_type": self.format, "bnb_4bit_use_double_quant": self.double_quantization,
                "bnb_4bit_compute_dtype": self.dtype,
            }  # fmt: skip
        load: Any = type(model).from_pretrained  # typed without the loading information that it returns as well
        with no_foreign_bars(), one_message(source):
            made, info = load(
                None, config=copy.deepcopy(model.config), state_dict=dict(model.state_dict()), dtype=getattr(torch, self.dtype),
                quantization_config=BitsAndBytesConfig(**settings, llm_int8_skip_modules=head_names(model)),
                output_loading_info=True, **loading_options("cpu"),
            )  # fmt: skip
        refuse_misfit(source, info)
        made.generation_config = model.generation_config
        found: PreTrainedModel = made
        return found


def matrix_shapes(model: "PreTrainedModel") -> dict[str, tuple[int, int]]:
    """Return inputs and outputs of every matrix, by name, but embedding and head.

    Raises TechniqueError if the model has others, which would stay dense unnoticed.
    """
    from torch.nn import Embedding, Linear
    from transformers.pytorch_utils import Conv1D

    parts: dict[str, Any] = {name: part for name, part in model.named_modules() if isinstance(part, Linear | Conv1D)}
    known = {id(part.weight) for part in model.modules() if isinstance(part, Linear | Conv1D | Embedding)}
    loose = [name for name, weight in model.named_parameters() if weight.dim() > 1 and id(weight) not in known]
    if loose:
        raise TechniqueError(
            type(model).__name__,
            f"{len(loose)} matrices that are no linear layer: {shortened(loose)}",
            "a transformer whose layers are torch.nn.Linear or Conv1D",
            "export/gguf, or leave the model dense",
        )
    heads = head_names(model)
    return {
        name: (part.in_features, part.out_features) if isinstance(part, Linear) else (part.nx, part.nf)
        for name, part in parts.items()
        if name not in heads
    }


def check_stored(out: Path, layers: Collection[str]) -> None:
    """Raise TechniqueError unless exactly these layers have scales in the files."""
    ends = (".SCB", ".weight.absmax")
    stored = {name.removesuffix(end) for name in tensors_of(out) for end in ends if name.endswith(end)}
    if odd := sorted(stored ^ set(layers)):
        raise TechniqueError(
            str(out),
            f"{len(stored)} of {len(layers)} layers are quantized; these differ: {shortened(odd)}",
            "every linear layer but the head quantized",
            "export/gguf, or leave the model dense",
        )
