"""Out of memory: estimate the demand of weights and batch, and suggest settings that fit."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.distill.training.arguments import precision_of
from tasks.distill.training.forecast import activation_bytes, batch_bytes, fixed_bytes, rounded_bytes
from tasks.distill.training.options import Adapted
from tasks.distill.training.settings import Training
from tasks.shared.errors import MachineError
from tasks.shared.forecast import Dimensions
from tasks.shared.freed_memory import return_freed_memory
from tasks.shared.technique import StepRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback

SIGNS = ("out of memory", "can't allocate memory", "not enough memory")
"""Messages of torch for a lack of memory: CUDA's allocator, the CPU's by errno, and the CPU's own."""
ROOM = 0.8
"""Share of the memory that a suggestion may use; fragmentation and libraries need the rest."""
TRIM_EVERY = 10
"""Optimizer steps."""


@dataclass
class Seen:
    """Size of the last batch that a process started: conversations, and tokens of the longest.

    room: bytes for weights and batches at the start of training.
    modules: bytes of the objective's own modules.
    """

    room: float
    rows: int = 0
    tokens: int = 0
    modules: float = 0.0


@contextmanager
def memory_errors(settings: Training, model: "PreTrainedModel", run: StepRun) -> Iterator[Seen]:
    """Turn a failed allocation into a MachineError with the demand and settings that fit.

    Yields the record to which the trainer writes the size of its batches.
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
    """Bytes of the weights of an objective's modules, such as a teacher."""
    import torch

    held = [value for value in vars(objective).values() if isinstance(value, torch.nn.Module)]
    return float(sum(weight.numel() * weight.element_size() for module in held for weight in module.parameters()))


@dataclass(frozen=True)
class Demand:
    """Estimated memory of a training, in bytes per process.

    fixed: weights, gradients, moments and the teacher's weights.
    eager: True if attention keeps its probabilities.
    size: bytes per value.
    """

    config: Any
    fixed: float
    tokens: int
    eager: bool
    size: float

    def batch(self, rows: int, checkpointing: bool) -> float:
        """Bytes of a batch's activations for the backward pass; see `batch_bytes`."""
        shape = Dimensions.from_config(self.config.to_dict())
        return batch_bytes(shape, rows, self.tokens, self.size, self.eager, checkpointing)

    def most_rows(self, rows: int, checkpointing: bool, total: float) -> int:
        """Largest divisor of `rows` that fits into `total` bytes; 0 if a single row does not."""
        sizes = (size for size in range(rows, 0, -1) if rows % size == 0)
        return next((size for size in sizes if self.fixed + self.batch(size, checkpointing) <= ROOM * total), 0)


def demand(settings: Training, model: "PreTrainedModel", run: StepRun, seen: Seen) -> Demand:
    """Estimate the demand of one process, which with fsdp has a part of the weights and moments."""
    from tasks.distill.training.rounded_layers import rounded_layers

    config = model.config.get_text_config()
    weights = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    fixed = fixed_bytes(weights, trained, run.compute.processes if run.compute.sharding == "fsdp" else 1)
    fixed += rounded_bytes(settings, sum(layer.weight.numel() for layer in rounded_layers(model).values()))
    size = activation_bytes(precision_of(settings.precision, run.compute.device))
    eager = config._attn_implementation == "eager"
    return Demand(config, fixed + seen.modules, seen.tokens or settings.max_tokens, eager, size)


def room_for(model: "PreTrainedModel", device: str) -> float:
    """Bytes available to a training on this device, the model's weights included."""
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


def trimmer(device: str) -> "TrainerCallback":
    """Return a callback that gives freed memory back every few optimizer steps.

    Batches have different lengths, and what glibc keeps of freed tensors grows over a training on a CPU: a 135M model of which 4.5 GB
    were in use took 10 GB after 300 steps, and takes 6 (docs/LOG.md).
    """
    from transformers import TrainerCallback

    class Trimmer(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if device == "cpu" and state.global_step % TRIM_EVERY == 0:
                return_freed_memory()

    return Trimmer()


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
    """List settings with which the same training should fit; if none, ways to shrink it."""
    step, asked = f"steps.{run.step}", settings.batch_size // run.compute.processes
    knobs = []
    for checkpointing in sorted({settings.gradient_checkpointing, True}):
        rows = took.most_rows(asked, checkpointing, total)
        same = checkpointing == settings.gradient_checkpointing
        if same and rows == asked:  # it fits by the estimate, but did not
            rows = next((size for size in range(asked - 1, 0, -1) if asked % size == 0), 0)
        if not rows:
            continue
        batch, passes = rows * run.compute.processes, settings.accumulation * asked // rows
        smaller = [f"{step}.batch_size={batch} {step}.accumulation={passes}"] if rows < asked else []
        knobs.append(" ".join([*smaller, *([] if same else [f"{step}.gradient_checkpointing=true"])]))
    return knobs or _last_resorts(settings, took, run)


def _last_resorts(settings: Training, took: Demand, run: StepRun) -> list[str]:
    """List changes that make the training itself smaller."""
    step = f"steps.{run.step}"
    hints = []
    if isinstance(settings, Adapted) and not settings.lora.rank:
        hints.append(f"{step}.lora.rank=16 trains adapters only")
    if not settings.frozen_layers:
        hints.append(f"{step}.frozen_layers=N saves gradients and moments")
    if run.compute.device == "cuda" and run.compute.sharding == "none":
        hints.append("runtime.processes=0 runtime.sharding=fsdp spreads the weights over several GPUs")
    return [*hints, f"shorter conversations (up to {took.tokens} tokens now)", "a smaller model"]
