"""Out of memory: what the weights and the batch that failed take by arithmetic, and the setting that fits."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.distill.losses.head import CHUNK_ELEMENTS
from tasks.distill.training.options import Adapted
from tasks.distill.training.settings import Training
from tasks.shared.errors import MachineError
from tasks.shared.technique import StepRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIGNS = ("out of memory", "can't allocate memory", "not enough memory")
"""How torch says it: CUDA's allocator, the CPU's by errno, and the CPU's own."""
BYTES_PER_WEIGHT = 16
"""Weight, gradient and AdamW's two moments in float32 (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1)."""
LOGITS_COPIES = 4
"""Of a chunk's logits at once: the product, its float32 copy, the log-probabilities and the gradient."""
ROOM = 0.9
"""Share of the memory that a suggestion may fill: the allocator's gaps and the libraries take the rest."""


@dataclass
class Seen:
    """The last batch that a process began: conversations and tokens of the longest."""

    rows: int = 0
    tokens: int = 0


@contextmanager
def memory_errors(settings: Training, model: "PreTrainedModel", run: StepRun) -> Iterator[Seen]:
    """Turn an allocation that failed into MachineError: what weights and batch take, and which setting makes it fit.

    Yields what the trainer notes its batches in.
    """
    seen = Seen()
    try:
        yield seen
    except MemoryError as error:
        raise _too_small(settings, model, run, seen) from error
    except RuntimeError as error:
        if not any(sign in str(error).lower() for sign in SIGNS):
            raise
        raise _too_small(settings, model, run, seen) from error


def weight_bytes(model: "PreTrainedModel", run: StepRun) -> float:
    """Weights, gradients and moments of one process; with fsdp a part of each."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    held = run.processes if run.sharding == "fsdp" else 1
    return (4 * weights + (BYTES_PER_WEIGHT - 4) * trained) / held


def activation_bytes(config: Any, rows: int, tokens: int, settings: Training, eager: bool) -> float:
    """What a batch keeps for the backward pass, and one chunk of logits.

    Counted from a Llama layer (as Korthikanti et al. 2022, arXiv 2205.05198, section 4.1, do for GPT's): per token 2 norms with input
    and output, queries, keys, values, attention's output and both residual sums, and four tensors of the feed-forward network's width.
    eager: attention also keeps scores and probabilities, heads x tokens each.  With gradient checkpointing a layer keeps its input,
    and one layer at a time is whole.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or width // heads
    values = head * (getattr(config, "num_key_value_heads", None) or heads)
    each = (
        6 * width + 3 * head * heads + 3 * values + 4 * config.intermediate_size + (2 * heads * tokens if eager else 0)
    )
    size = 4 if settings.precision == "float32" else 3  # in 16 bits the norms and the softmax stay float32
    layers = config.num_hidden_layers
    kept = each + layers * width if settings.gradient_checkpointing else layers * each
    logits = min(rows * tokens * config.vocab_size, CHUNK_ELEMENTS) * 4 * LOGITS_COPIES
    return float(rows * tokens * kept * size + logits)


def fitting_batch(
    config: Any, fixed: float, tokens: int, settings: Training, eager: bool, total: float, count: int
) -> int:
    """The most conversations per pass, over `count` processes, that fit `total` bytes each; a divisor of the batch, 0 if none fits."""
    for rows in range(settings.batch_size // count, 0, -1):
        fits = fixed + activation_bytes(config, rows, tokens, settings, eager) <= ROOM * total
        if fits and settings.batch_size % (rows * count) == 0:
            return rows * count
    return 0


def memory_limit(device: str) -> float:
    """Bytes that this process may use: the GPU's, or the machine's or a smaller limit on its address space."""
    if device == "cuda":
        import torch

        return float(torch.cuda.mem_get_info()[1])
    import resource

    import psutil

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    total = psutil.virtual_memory().total
    return float(total if limit == resource.RLIM_INFINITY else min(total, limit))


def _too_small(settings: Training, model: "PreTrainedModel", run: StepRun, seen: Seen) -> MachineError:
    config = model.config.get_text_config()
    total, fixed = memory_limit(run.device), weight_bytes(model, run)
    tokens, eager = seen.tokens or settings.max_tokens, config._attn_implementation == "eager"
    rows = seen.rows or max(1, settings.batch_size // run.processes)
    batch = activation_bytes(config, rows, tokens, settings, eager)
    count = run.processes if run.device == "cpu" else 1
    return MachineError(
        f"step {run.step}",
        f"out of memory at {rows} conversations of up to {tokens} tokens at once; "
        f"the {'machine' if run.device == 'cpu' else 'GPU'} has {total / 1e9:.1f} GB",
        f"about {count * fixed / 1e9:.1f} GB for weights, gradients and moments and {count * batch / 1e9:.1f} GB for the batch"
        + (f", of {count} processes" if count > 1 else ""),
        "; or ".join(_knobs(settings, model, run, tokens, total / count)),
    )


def _knobs(settings: Training, model: "PreTrainedModel", run: StepRun, tokens: int, total: float) -> list[str]:
    """Settings with which the same training should fit, by the same arithmetic; else what makes it smaller."""
    from dataclasses import replace

    config, fixed, step = model.config.get_text_config(), weight_bytes(model, run), f"steps.{run.step}"
    eager = config._attn_implementation == "eager"
    asked = settings.batch_size
    knobs = []
    for checkpointing in {settings.gradient_checkpointing, True}:
        tried = replace(settings, gradient_checkpointing=checkpointing)
        fits = fitting_batch(config, fixed, tokens, tried, eager, total, run.processes)
        if checkpointing == settings.gradient_checkpointing and fits == asked:
            fits = _next_smaller(asked, run.processes)  # the arithmetic says that it fits, the machine that it does not
        extra = [f"{step}.gradient_checkpointing=true"] if checkpointing != settings.gradient_checkpointing else []
        if fits and (fits < asked or extra):
            smaller = [f"{step}.batch_size={fits} {step}.accumulation={settings.accumulation * asked // fits}"]
            knobs.append(" ".join([*(smaller if fits < asked else []), *extra]))
    if knobs:
        return knobs
    hints = [f"{step}.frozen_layers=N leaves gradients and moments out"] if not settings.frozen_layers else []
    if isinstance(settings, Adapted) and not settings.lora.rank:
        hints.insert(0, f"{step}.lora.rank=16 trains adapters alone")
    if run.device == "cuda":
        hints.append("runtime.processes=0 runtime.sharding=fsdp spreads the weights over several GPUs")
    return [*hints, f"shorter conversations (at most {tokens} tokens now)", "a smaller model"]


def _next_smaller(batch: int, count: int) -> int:
    """The largest smaller batch that divides this one and that the processes divide; 0 if there is none."""
    return next((size for size in range(batch - 1, 0, -1) if batch % size == 0 and size % count == 0), 0)
