"""Estimates of a training's time and memory, for forecasts and out-of-memory errors."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from tasks.distill.training.options import Adapted, Packed, Taught
from tasks.shared.forecast import (
    BASE_BYTES,
    DTYPE_BYTES,
    GPU_BYTES,
    SMALL_BYTES,
    START_S,
    Dimensions,
    Forecast,
    Size,
    Workload,
)
from tasks.shared.model.head import CHUNK_ELEMENTS
from tasks.shared.model.precision import chosen_dtype, fast_dtype
from tasks.shared.technique import Compute

if TYPE_CHECKING:
    from tasks.distill.training.settings import Training

WEIGHT_BYTES = 4
"""Bytes of a weight, trained or frozen: float32."""
TRAINED_BYTES = 12
"""Further bytes of a trained weight: gradient and AdamW's two moments (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1)."""
LOGITS_COPIES = 4
"""Copies of a chunk's logits at a time: the product, its float32 copy, the log-probabilities and the gradient."""
KEPT_FREED = 1.45
"""Activations on a CPU, against those in use: glibc keeps freed ones of batches of other lengths for some steps (docs/log)."""
MATRICES = 7
"""Number of linear layers in a decoder layer."""


def fixed_bytes(weights: float, trained: float, shards: int) -> float:
    """Bytes of weights, gradients and moments in one process.

    weights, trained: number of all parameters, and of those with a gradient.
    shards: processes that share them; 1 without fsdp.
    """
    return (WEIGHT_BYTES * weights + TRAINED_BYTES * trained) / shards


def batch_bytes(shape: Dimensions, rows: float, tokens: int, value: float, eager: bool, checkpointing: bool) -> float:
    """Bytes of a batch's activations for the backward pass and of one chunk of logits.

    Counted for a Llama layer, as in Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1) for GPT: per token 2 norms with
    input and output, queries, keys, values, attention's output and both residual sums, four tensors of the feed-forward
    network's width, and heads x tokens probabilities.  With gradient checkpointing, all layers keep their inputs and one layer at
    a time keeps everything.  Measurements on a CPU were 0.8 to 1.2 times the estimate (docs/LOG.md).

    shape: with the number of layers that the backward pass runs through.
    tokens: of the longest row.
    value: bytes of an activation.
    eager: True if attention keeps its probabilities.
    """
    layer = 6 * shape.width + 3 * shape.query + 3 * shape.value + 4 * shape.feed_forward
    layer += shape.heads * tokens if eager else 0
    kept = layer + shape.layers * shape.width if checkpointing else shape.layers * layer
    logits = min(rows * tokens * shape.vocabulary, CHUNK_ELEMENTS) * 4 * LOGITS_COPIES
    return float(rows * tokens * kept * value + logits)


def rounded_bytes(settings: "Training", trained: float) -> float:
    """Bytes of rounded copies of trained weights, for the backward pass; 0 without a grid.

    trained: number of weights in linear layers.  With gradient checkpointing, copies of one layer at a time are negligible.
    """
    return 0.0 if settings.weight_grid is None or settings.gradient_checkpointing else WEIGHT_BYTES * trained


def trained_parameters(settings: "Training", size: Size) -> float:
    """Number of parameters with a gradient: those of adapters, or of layers that are not frozen."""
    if isinstance(settings, Adapted) and settings.lora.rank:
        share = len(settings.lora.targets) / MATRICES if settings.lora.targets else 1.0
        return settings.lora.rank * size.shape.layers * size.shape.layer_ends * min(1.0, share)
    if settings.frozen_layers:
        return size.layer * max(0, size.shape.layers - settings.frozen_layers)
    return size.parameters


def forecast_training(settings: "Training", work: Workload) -> Forecast:
    """Forecast a training: weights, gradients, moments, activations of a batch, and a teacher.

    Each process has its own copies.  The model is loaded on the CPU, even to train on GPUs.
    """
    size, teacher, compute = work.size(), work.size("teacher"), work.compute
    shards = compute.processes if compute.sharding == "fsdp" else 1
    trained = trained_parameters(settings, size)
    held = fixed_bytes(size.parameters, trained, shards) + rounded_bytes(
        settings, min(trained, size.parameters - size.outer)
    )
    if isinstance(settings, Taught):
        held += DTYPE_BYTES[chosen_dtype(settings.teacher_dtype, compute.device)] * teacher.parameters
    batch = _batch_bytes(settings, size.shape, compute.device, work.rows.longest)
    backward = 2 * (1 - settings.frozen_layers / max(1, size.shape.layers, settings.frozen_layers))
    passes = 1 + backward + (teacher.parameters / size.parameters if size.parameters else 0)
    seconds = START_S + passes * settings.epochs * work.reading(size, work.rows.train * work.rows.tokens)
    saved = size.saved() if settings.weight_grid is None else replace(size, bytes=WEIGHT_BYTES * size.parameters)
    disk = SMALL_BYTES + (saved.bytes if settings.early_step else 0.0)
    if compute.device == "cuda":
        loaded = compute.processes * (BASE_BYTES + WEIGHT_BYTES * size.parameters)
        gpu = GPU_BYTES + held + batch / compute.processes
        return Forecast(seconds, loaded, gpu, saved, disk, savings=tuple(_savings(settings, compute)))
    if compute.device == "cpu" and not settings.gradient_checkpointing:  # which returns freed memory at once
        batch *= KEPT_FREED
    memory = compute.processes * (BASE_BYTES + held) + batch
    return Forecast(seconds, memory, size=saved, disk=disk, savings=tuple(_savings(settings, compute)))


def _savings(settings: "Training", compute: Compute) -> Iterator[str]:
    """Yield overrides that lower the memory of a training."""
    if isinstance(settings, Adapted) and not settings.lora.rank:
        yield "steps.{step}.lora.rank=16 trains adapters only"
    if settings.batch_size > 1:
        smaller = f"steps.{{step}}.batch_size={settings.batch_size // 2}"
        yield f"{smaller} steps.{{step}}.accumulation={2 * settings.accumulation}"
    if not settings.gradient_checkpointing:
        yield "steps.{step}.gradient_checkpointing=true"
    if compute.device == "cuda" and compute.sharding == "none":
        yield "runtime.processes=0 runtime.sharding=fsdp spreads the weights over all GPUs"


def _batch_bytes(settings: "Training", shape: Dimensions, device: str, longest: int) -> float:
    """Bytes of a whole batch, over all processes.

    longest: tokens of the longest conversations.
    """
    packed = isinstance(settings, Packed) and settings.packing
    tokens = settings.max_tokens if packed else min(longest, settings.max_tokens)
    exact = settings.precision == "float32" or (
        settings.precision == "auto" and device == "cpu" and fast_dtype(device) == "float32"
    )
    adapted = isinstance(settings, Adapted) and settings.lora.rank
    layers = shape.layers if adapted else max(0, shape.layers - settings.frozen_layers)
    value = activation_bytes("float32" if exact else "bfloat16")
    return batch_bytes(
        shape.with_layers(layers), settings.batch_size, tokens, value, device == "cpu", settings.gradient_checkpointing
    )


def activation_bytes(precision: str) -> float:
    """Mean bytes of an activation: norms and softmax stay in float32."""
    return 4 if precision == "float32" else 3
