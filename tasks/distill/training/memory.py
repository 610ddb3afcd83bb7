"""Out of memory: what the weights and the batch that failed take by arithmetic, and the setting that fits."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.distill.training.arguments import precision_of
from tasks.distill.training.options import Adapted
from tasks.distill.training.settings import Training
from tasks.shared.errors import MachineError
from tasks.shared.model.head import CHUNK_ELEMENTS
from tasks.shared.technique import StepRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIGNS = ("out of memory", "can't allocate memory", "not enough memory")
"""How torch says it: CUDA's allocator, the CPU's by errno, and the CPU's own."""
BYTES_PER_WEIGHT = 16
"""Weight, gradient and AdamW's two moments in float32 (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1)."""
LOGITS_COPIES = 4
"""Of a chunk's logits at once: the product, its float32 copy, the log-probabilities and the gradient."""
ACTIVATION_BYTES, ACTIVATION_WEIGHTS = 2.5e6, 1.35e8
"""Activations kept for the backward pass, per token, of a model of so many weights; measured.  Layers x width grow like their root."""
ROOM = 0.8
"""Share of the memory that a suggestion may fill: the allocator's gaps and the libraries take the rest."""
M_MMAP_THRESHOLD, PIECE = -3, 2**20
"""mallopt(3)'s name for the size, in bytes, from which glibc maps memory for itself and unmaps it when it is freed."""


@dataclass
class Seen:
    """The last batch that a process began: conversations, and tokens of the longest.

    room: bytes for weights and batches when training began.  beside: those of the objective's own modules.
    """

    room: float
    rows: int = 0
    tokens: int = 0
    beside: float = 0.0


@contextmanager
def memory_errors(settings: Training, model: "PreTrainedModel", run: StepRun) -> Iterator[Seen]:
    """Turn an allocation that failed into MachineError: what weights and batch take, and which setting makes it fit.

    Yields what the trainer notes its batches in.
    """
    seen = Seen(room_for(model, run.compute.device))
    try:
        yield seen
    except MemoryError as error:
        raise _too_small(settings, model, run, seen) from error
    except RuntimeError as error:
        if not any(sign in str(error).lower() for sign in SIGNS):
            raise
        raise _too_small(settings, model, run, seen) from error


def module_bytes(objective: object) -> float:
    """Weights of the modules that an objective holds, such as a teacher."""
    import torch

    held = [value for value in vars(objective).values() if isinstance(value, torch.nn.Module)]
    return float(sum(weight.numel() * weight.element_size() for module in held for weight in module.parameters()))


def fixed_bytes(weights: float, trained: float, shards: int = 1) -> float:
    """Bytes that one process needs from the first step to the last: weights, gradients and AdamW's moments, all in float32.

    weights: parameters of the model, adapters included.  trained: those with a gradient.  shards: processes among which FSDP
    spreads them; 1 without FSDP.
    """
    return (4 * weights + (BYTES_PER_WEIGHT - 4) * trained) / shards


def batch_bytes(
    config: Any, rows: int, tokens: int, *, value_bytes: float = 4, eager: bool = False, checkpointing: bool = False
) -> float:
    """Bytes that a batch keeps for the backward pass, plus one chunk of logits.

    config: sizes of the decoder, as in a Llama configuration.  rows: conversations.  tokens: length of the longest.
    value_bytes: of one activation.  eager: attention keeps its probabilities.
    Counted from a Llama layer (as Korthikanti et al. 2022, arXiv 2205.05198, section 4.1, do for GPT's): per token 2 norms with
    input and output, queries, keys, values, attention's output and both residual sums, four tensors of the feed-forward
    network's width, and heads x tokens probabilities.  With gradient checkpointing a layer keeps its input, and one layer at a
    time is whole.  Measured on a CPU: from 0.8 to 1.2 times as much (docs/LOG.md).
    """
    width, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    head = getattr(config, "head_dim", None) or width // heads
    values = head * (getattr(config, "num_key_value_heads", None) or heads)
    layer = 6 * width + 3 * head * heads + 3 * values + 4 * config.intermediate_size
    layer += heads * tokens if eager else 0
    kept = layer + layers * width if checkpointing else layers * layer
    logits = min(rows * tokens * config.vocab_size, CHUNK_ELEMENTS) * 4 * LOGITS_COPIES
    return float(rows * tokens * kept * value_bytes + logits)


def training_bytes(
    weights: float, trained: float, rows: int, tokens: int, *, config: Any = None, checkpointing: bool = False,
    value_bytes: float = 4, teacher: float = 0.0, shards: int = 1,
) -> float:  # fmt: skip
    """Peak bytes of one training process, without the libraries: weights, gradients, moments, one batch, and a teacher's weights.

    weights, trained: parameters, all and those with a gradient (with LoRA: the adapters).  rows, tokens: conversations of a
    batch in this process, and length of the longest.  config: as in `batch_bytes`; None for a model of unknown sizes, whose
    activations are then scaled from those of a measured one.  value_bytes: of one activation, 3 in mixed precision; this and
    `checkpointing` count only with a config.
    teacher: bytes of weights that stay in memory beside the student.  shards: see `fixed_bytes`.
    """
    if config is None:
        batch = rows * tokens * ACTIVATION_BYTES * (weights / ACTIVATION_WEIGHTS) ** 0.5
    else:
        batch = batch_bytes(config, rows, tokens, value_bytes=value_bytes, checkpointing=checkpointing)
    return fixed_bytes(weights, trained, shards) + batch + teacher


@dataclass(frozen=True)
class Demand:
    """Memory of one training process by arithmetic, in bytes.

    fixed: weights, gradients and moments, and the teacher's weights.  tokens: length of the longest conversation.
    eager: attention keeps its probabilities.  size: bytes of one activation.
    """

    config: Any
    fixed: float
    tokens: int
    eager: bool
    size: float

    def batch(self, rows: int, checkpointing: bool) -> float:
        """Bytes of a batch of so many conversations; see `batch_bytes`."""
        return batch_bytes(
            self.config, rows, self.tokens, value_bytes=self.size, eager=self.eager, checkpointing=checkpointing
        )

    def most_rows(self, rows: int, checkpointing: bool, total: float) -> int:
        """The largest divisor of `rows` that fits into `total` bytes; 0 if one row does not."""
        sizes = (size for size in range(rows, 0, -1) if rows % size == 0)
        return next((size for size in sizes if self.fixed + self.batch(size, checkpointing) <= ROOM * total), 0)


def demand(settings: Training, model: "PreTrainedModel", run: StepRun, seen: Seen) -> Demand:
    """Memory of one process of this training; with fsdp it has a part of weights, gradients and moments."""
    config = model.config.get_text_config()
    weights = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    fixed = fixed_bytes(weights, trained, run.compute.processes if run.compute.sharding == "fsdp" else 1)
    size = (
        4 if precision_of(settings.precision, run.compute.device) == "float32" else 3
    )  # norms and softmax stay float32
    eager = config._attn_implementation == "eager"
    return Demand(config, fixed + seen.beside, seen.tokens or settings.max_tokens, eager, size)


def room_for(model: "PreTrainedModel", device: str) -> float:
    """Bytes for a training on this device, the model's weights included: what others leave, and what limits allow."""
    import resource

    import psutil
    import torch

    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])  # the model is still on the CPU
    room = psutil.virtual_memory().available
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        room = min(room, limit - psutil.Process().memory_info().vms)
    return float(room + sum(weight.numel() * weight.element_size() for weight in model.parameters()))


def return_memory_at_once() -> None:
    """Let freed tensors go back to the system, here and for good: for a training on a CPU that would rather be small than fast.

    By itself glibc soon keeps pieces of up to 32 MiB, and what recomputed layers leave between them fills most of the memory that
    recomputing was to save (docs/LOG.md).  Other C libraries have no such setting.
    """
    import ctypes

    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        libc.mallopt(M_MMAP_THRESHOLD, PIECE)


def _too_small(settings: Training, model: "PreTrainedModel", run: StepRun, seen: Seen) -> MachineError:
    took = demand(settings, model, run, seen)
    together = run.compute.processes if run.compute.device == "cpu" else 1
    rows = seen.rows or max(1, settings.batch_size // run.compute.processes)
    batch = took.batch(rows, settings.gradient_checkpointing)
    when = f"at {rows} conversations of up to {took.tokens} tokens at once" if seen.rows else "before the first batch"
    whose = f"the {'machine' if run.compute.device == 'cpu' else 'GPU'} had {seen.room / 1e9:.2f} GB left"
    shared = f", of {together} processes" if together > 1 else ""
    return MachineError(
        f"step {run.step}",
        f"out of memory {when}; {whose}",
        f"about {together * took.fixed / 1e9:.2f} GB for weights, gradients and moments and {together * batch / 1e9:.2f} GB for the batch{shared}",
        "; or ".join(_knobs(settings, took, run, seen.room / together)),
    )


def _knobs(settings: Training, took: Demand, run: StepRun, total: float) -> list[str]:
    """Settings with which the same training should fit, by the same arithmetic; else what makes it smaller."""
    step, asked = f"steps.{run.step}", settings.batch_size // run.compute.processes
    knobs = []
    for checkpointing in sorted({settings.gradient_checkpointing, True}):
        rows = took.most_rows(asked, checkpointing, total)
        same = checkpointing == settings.gradient_checkpointing
        if same and rows == asked:  # the arithmetic says that it fits, the machine that it does not
            rows = next((size for size in range(asked - 1, 0, -1) if asked % size == 0), 0)
        if not rows:
            continue
        batch, passes = rows * run.compute.processes, settings.accumulation * asked // rows
        smaller = [f"{step}.batch_size={batch} {step}.accumulation={passes}"] if rows < asked else []
        knobs.append(" ".join([*smaller, *([] if same else [f"{step}.gradient_checkpointing=true"])]))
    return knobs or _last_resorts(settings, took, run)


def _last_resorts(settings: Training, took: Demand, run: StepRun) -> list[str]:
    """What makes the training itself smaller."""
    step = f"steps.{run.step}"
    hints = []
    if isinstance(settings, Adapted) and not settings.lora.rank:
        hints.append(f"{step}.lora.rank=16 trains adapters alone")
    if not settings.frozen_layers:
        hints.append(f"{step}.frozen_layers=N leaves gradients and moments out")
    if run.compute.device == "cuda" and run.compute.sharding == "none":
        hints.append("runtime.processes=0 runtime.sharding=fsdp spreads the weights over several GPUs")
    return [*hints, f"shorter conversations (up to {took.tokens} tokens now)", "a smaller model"]
