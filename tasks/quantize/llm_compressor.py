"""Quantization to compressed-tensors through llm-compressor."""

import contextlib
import dataclasses
import logging
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.quantize.comparison import compare_with_rounding, rounded
from tasks.quantize.groups import forecast_packing
from tasks.shared.errors import StillroomError, TechniqueError
from tasks.shared.forecast import Forecast, Workload, with_compared
from tasks.shared.model.agreement import compare_logits, logits_of, mean_divergence
from tasks.shared.model.calibration import calibration_ids, split_calibration
from tasks.shared.model.dense import check_dense
from tasks.shared.model.families import CONV1D, check_family, is_mixture
from tasks.shared.model.grids import Grid, grid_problems
from tasks.shared.model.linear_layers import head_names, input_sizes
from tasks.shared.model.masks import hold_zeros, read_masks, zeros_of
from tasks.shared.model.saving import save_tokenizer
from tasks.shared.model.widths import GROUP_SIZES, choose_group_size, shortened
from tasks.shared.progress import no_foreign_bars, progress_bar
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Refusal, Spec, StepRun, Upstream

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
EXPECTED = ("Disabling tokenizer parallelism", "No accelerator available")
"""Prefixes of llm-compressor warnings about intended settings."""


def packing_spec(summary: str, calibration: Port, paper: str = "", libraries: tuple[str, ...] = ()) -> Spec:
    """Spec of a technique that packs weights through llm-compressor.

    libraries: that compute, besides it.
    """
    return Spec(
        summary=summary,
        ports={"model": Port((Kind.MODEL,)), "calibration": calibration},
        produces=Kind.MODEL,
        libraries=("torch", "transformers", "llmcompressor", "compressed-tensors", "tokenizers", "gguf", *libraries),
        device="accelerator",
        accepts="dense",
        gives="packed",
        paper=paper,
    )


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Packed(ABC):
    """Settings of techniques that pack all linear layers but the head."""

    check_rows: Annotated[int, Field(ge=1)] = 8
    """Conversations of the calibration split, held out of the calibration, on which the written model is compared with its source."""
    max_tokens: Annotated[int, Field(ge=8)] = 192
    """Most tokens per calibration conversation; longer ones are truncated."""

    @abstractmethod
    def scheme(self, widths: Mapping[str, int]) -> tuple[dict[str, Any], Metrics]:
        """Return llm-compressor's arguments of weights and activations, and their figures.

        widths: input sizes of the layers.
        """

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse families whose matrices stay dense or do not come back when reloaded."""
        if config.get("model_type") in CONV1D:
            return Refusal("its matrices are Conv1D, which llm-compressor leaves dense without a word", "export/gguf")
        if is_mixture(config):
            return Refusal(
                "its experts, packed one by one, are missing or dense again once transformers reloads them",
                "export/gguf",
            )
        return None


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class WeightOnly(Packed):
    """Settings of techniques that store groups of small integers and keep activations as floats."""

    bits: Literal[2, 3, 4, 8] = 4
    """Bits per weight; activations stay in floating point (W4A16, W8A16).  2 and 3 bits need a technique that fits them, and engines with a
    kernel: vLLM has none."""
    group_size: Annotated[int, Field(ge=0, multiple_of=8)] = 0
    """Weights that share one scale; 0 takes the largest of 128, 64 and 32 that divides every layer."""
    symmetric: bool | Literal["auto"] = "auto"
    """true: scales only; false: a zero point per group too.  auto: zero points up to 4 bits, where they keep much more, and none at 8."""

    @property
    def scales_only(self) -> bool:
        """True if groups have no zero point."""
        return self.bits == 8 if self.symmetric == "auto" else self.symmetric

    def scheme(self, widths: Mapping[str, int]) -> tuple[dict[str, Any], Metrics]:
        """Return integer groups.  Raises TechniqueError if they do not divide the widths."""
        group = choose_group_size(widths, self.group_size)
        log.info("group size %d (%s)", group, "as set" if self.group_size else "the largest that divides every layer")
        weights = {"num_bits": self.bits, "type": "int", "symmetric": self.scales_only, "strategy": "group"}
        return {"weights": weights | {"group_size": group}}, {"bits": self.bits, "group_size": group}

    def keeps(self, grid: Grid) -> bool:
        """Return True for a grid on which a training may have put the weights, and which stays."""
        return False

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[StillroomError]:
        """Yield an error for a model that was trained on another grid."""
        if self.bits < 8:
            yield from grid_problems(where, inputs, upstream, self.keeps)

    def forecast(self, work: Workload) -> Forecast:
        """Forecast seconds by the number of weights, and integers and scales in every layer."""
        found = forecast_packing(work, self.bits, self.group_size, self.scales_only)
        return with_compared(found, work, self.check_rows, self.max_tokens)

    def check_widths(self, widths: Mapping[str, int]) -> None:
        """Refuse a group size that does not divide a known width."""
        if widths:
            choose_group_size(widths, self.group_size)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class EightBit(Packed):
    """Settings of techniques with 8-bit weights by output channel and 8-bit activations."""

    def forecast(self, work: Workload) -> Forecast:
        """Forecast a byte per weight; scales of output channels are negligible."""
        found = forecast_packing(work, 8, work.size().shape.width or GROUP_SIZES[0], True)
        return with_compared(found, work, self.check_rows, self.max_tokens)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Modifiers of llm-compressor in their order, and a block that asserts what they change.

    reads_rows: True if they calibrate.
    """

    modifiers: Sequence[Any]
    asserted: AbstractContextManager[None] = dataclasses.field(default_factory=contextlib.nullcontext)
    reads_rows: bool = True


def quantize(
    settings: Packed,
    inputs: Inputs,
    out: Path,
    run: StepRun,
    build: Callable[["PreTrainedModel", Mapping[str, Any], Sequence[Sequence[int]]], Recipe],
    calibration: int = 0,
    compare: bool = True,
) -> Metrics:
    """Quantize a model to `out` as a compressed-tensors folder, and compare it with its source.

    build: makes the recipe from the model, llm-compressor's arguments and the token ids of the calibration rows.
    calibration: number of calibration conversations; 0 for a recipe that needs none.
    compare: whether to compare a calibrated model with plain rounding; pointless where only ranges of activations are calibrated.
    Weights that pruning masked stay zero, which these integer and float types can hold exactly; GPTQ's compensation refills some, which
    become zero again afterwards.
    Returns bits, group_size if there is one, size_bytes, calibration_tokens if there are any, masked_sparsity and zeros_refilled (share of
    the masked weights that had to be set to zero again) for a model with masks, and the figures of `check_reload` and
    `compare_with_rounding`.
    Raises TechniqueError for a quantized model, a group size that does not divide a layer, or logits that are not finite.
    """
    import torch

    from tasks.shared.model.loading import load_model, load_tokenizer
    from tasks.shared.model.sizes import weight_bytes

    torch.set_num_threads(run.compute.threads)
    source = inputs.one("model").path
    corpus = inputs.one("calibration") if calibration else inputs.get("calibration")
    rows, held_out = split_calibration(corpus.path, calibration, settings.check_rows) if corpus else ([], [])
    check_dense(source)
    masks = read_masks(source)
    model, tokenizer = load_model(source), load_tokenizer(source, chat=False)
    check_family(settings, model.config.to_dict(), str(source))
    sizes = input_sizes(model)
    arguments, figures = settings.scheme(sizes)
    ids, checks = (calibration_ids(tokenizer, part, settings.max_tokens) for part in (rows, held_out))
    source_logits = logits_of(model, checks)
    compared = compare and calibration > 0
    if compared:
        with rounded(model, arguments, sizes):
            rounding = mean_divergence(model, source_logits, checks)
    torch.manual_seed(run.seed)
    recipe = build(
        model, {"config_groups": {"group_0": {"targets": ["Linear"], **arguments}}, "ignore": head_names(model)}, ids
    )
    zeros = zeros_of(model, masks)
    with recipe.asserted:
        run_oneshot(model, tokenizer, list(recipe.modifiers), run, len(sizes), ids if recipe.reads_rows else ())
    refilled = hold_zeros(model, zeros)
    save_compressed(model, tokenizer, out)
    check_packed(out, sizes)
    release(model)  # before the written model is loaded
    measured = check_reload(out, checks, source_logits) if checks else {}
    if compared:
        measured |= compare_with_rounding(measured["kl_to_source"], rounding)
    figures |= {"size_bytes": weight_bytes(out)}
    if masks:
        figures |= {"masked_sparsity": round(masks.sparsity, 4), "zeros_refilled": round(refilled, 4)}
    return figures | ({"calibration_tokens": sum(map(len, ids))} if calibration else {}) | measured


def calibrated_seconds(forecast: Forecast, work: Workload, tokens: float) -> Forecast:
    """Add the time of a calibration on one thread to a forecast.

    tokens: tokens that the model is run over.
    """
    return dataclasses.replace(
        forecast, seconds=forecast.seconds + work.compute.threads * work.reading(work.size(), tokens)
    )


def quiet_import() -> None:
    """Set llm-compressor's log level to ERROR, unless the user set one.

    Call before its first import, after which it logs to standard output.
    """
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")


@contextlib.contextmanager
def quiet_llmcompressor(description: str, total: int) -> Iterator[None]:
    """Show one bar over the layers instead of llm-compressor's logs; send its warnings to ours."""
    import llmcompressor  # noqa: F401 - it installs its own loguru sinks when imported, which go here
    from loguru import logger

    logger.remove()
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # advice to authors of tracing code
    with no_foreign_bars(), progress_bar(description, total) as advance:
        sink = logger.add(lambda message: forward_record(message.record, advance), level="INFO", format="{message}")
        try:
            yield
        finally:
            logger.remove(sink)


def forward_record(record: Mapping[str, Any], advance: Any) -> None:
    """Handle a log record: a quantized layer advances the bar, a warning goes to our log."""
    if record["message"].startswith("Quantizing "):
        advance()
    elif record["level"].name in ("WARNING", "ERROR", "CRITICAL") and not record["message"].startswith(EXPECTED):
        log.warning("llm-compressor: %s", record["message"])


def run_oneshot(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    modifiers: list[Any],
    run: StepRun,
    layers: int,
    ids: Sequence[Sequence[int]] = (),
) -> None:
    """Quantize a model in place.

    layers: number of linear layers, for the progress bar.
    ids: calibration rows; each is a batch of its own, so that the statistics include no padding.
    Raises TechniqueError if GPTQ cannot factor a Hessian.
    Calibration runs on one thread: it does thousands of small operations, which are ten times slower on two threads that wait for
    each other on a busy machine.  One thread also makes the result reproducible byte by byte.
    """
    import torch
    from llmcompressor import oneshot
    from torch.utils.data import DataLoader

    # The library reads a configuration from the model's folder, which a model loaded from a GGUF file does not have.
    model.config.save_pretrained(run.scratch / "config")
    model.config.name_or_path = str(run.scratch / "config")
    rows = [
        {"input_ids": torch.tensor([list(row)]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)}
        for row in ids
    ]
    loader: Any = DataLoader(rows, batch_size=None) if rows else None  # type: ignore[arg-type]
    pipeline = "sequential" if rows else "datafree"
    torch.set_num_threads(1 if rows else run.compute.threads)
    try:
        with quiet_llmcompressor("quantize", layers), unpinned():
            oneshot(
                model=model,
                tokenizer=tokenizer,
                dataset=loader,
                recipe=modifiers,
                pipeline=pipeline,
                num_calibration_samples=max(1, len(rows)),
            )
    except torch.linalg.LinAlgError as error:
        raise TechniqueError(
            "calibration",
            "the Hessian of a layer's inputs is not positive definite",
            "inputs that vary in every direction",
            "larger damping, or more calibration rows",
        ) from error
    finally:
        torch.set_num_threads(run.compute.threads)


@contextlib.contextmanager
def unpinned() -> Iterator[None]:
    """Keep llm-compressor from pinning memory where no accelerator is: AWQ would fail."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    cache: Any = IntermediatesCache
    before = cache.pin_memory
    if not torch.accelerator.is_available():
        cache.pin_memory = lambda *_, **__: None
    try:
        yield
    finally:
        cache.pin_memory = before


def save_compressed(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", out: Path) -> None:
    """Write packed integers, with scales and dense parts in bfloat16.

    Quantized weights stay in float32 until they are packed: 8-bit ones rounded to bfloat16 first could fall on the next integer.
    """
    import torch

    layers: Any = model.modules()
    quantized = {
        id(layer.weight) for layer in layers if getattr(layer, "quantization_scheme", None) and hasattr(layer, "weight")
    }
    for parameter in model.parameters():
        if parameter.is_floating_point() and id(parameter) not in quantized:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    with quiet_llmcompressor("save", 1), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
        model.save_pretrained(out, save_compressed=True)
    save_tokenizer(tokenizer, out)


def release(model: "PreTrainedModel") -> None:
    """Free the memory of a model's weights: llm-compressor's session keeps the model itself."""
    import torch

    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = torch.empty(0, dtype=tensor.dtype)


def check_packed(out: Path, layers: Collection[str]) -> None:
    """Raise TechniqueError unless exactly these linear layers have scales in the files."""
    from safetensors import safe_open

    suffix, packed = ".weight_scale", set[str]()
    for file in out.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            packed |= {name.removesuffix(suffix) for name in tensors.keys() if name.endswith(suffix)}  # noqa: SIM118 - not a mapping
    if odd := sorted(packed ^ set(layers)):
        raise TechniqueError(
            str(out),
            f"{len(packed)} of {len(layers)} linear layers are packed; these differ: {shortened(odd)}",
            "every linear layer but the head packed",
            "export/gguf, or leave the model dense",
        )


def check_reload(out: Path, ids: Sequence[Sequence[int]], source_logits: Sequence["Tensor"]) -> dict[str, float]:
    """Reload the written model with plain transformers and compare it with its source.

    ids: rows to compare on.  source_logits: (length, vocabulary) per row.  Returns the figures of `compare_logits`.
    """
    from tasks.shared.model.loading import load_model

    with quiet_llmcompressor("reload", 1):
        return compare_logits(load_model(out), source_logits, ids, str(out))
