"""Out of memory, said with the figures and the knobs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

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


@contextmanager
def memory_errors(settings: Training, model: "PreTrainedModel", run: StepRun) -> Iterator[None]:
    """Turn an allocation that failed into MachineError: what the weights take, and which setting makes the rest smaller."""
    try:
        yield
    except MemoryError as error:
        raise _too_small(settings, model, run) from error
    except RuntimeError as error:
        if not any(sign in str(error).lower() for sign in SIGNS):
            raise
        raise _too_small(settings, model, run) from error


def _too_small(settings: Training, model: "PreTrainedModel", run: StepRun) -> MachineError:
    weights = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    fixed = (4 * weights + (BYTES_PER_WEIGHT - 4) * trained) / 1e9
    half = max(1, settings.batch_size // 2)
    knobs = [
        f"steps.{run.step}.batch_size={half} with accumulation={settings.accumulation * settings.batch_size // half}"
    ]
    if not settings.gradient_checkpointing:
        knobs.append(f"steps.{run.step}.gradient_checkpointing=true")
    if trained == weights:
        knobs.append(f"steps.{run.step}.frozen_layers=N")
    if isinstance(settings, Adapted) and not settings.lora.rank:
        knobs.append(f"steps.{run.step}.lora.rank=16")
    return MachineError(
        f"step {run.step}",
        f"the {'GPU' if run.device != 'cpu' else 'machine'} ran out of memory at batches of {settings.batch_size} conversations",
        f"about {fixed:.1f} GB for weights, gradients and moments ({weights / 1e6:.0f} M weights, {trained / 1e6:.0f} M trained), "
        "and room for a batch's activations",
        f"the same steps in less memory: {'; or '.join(knobs)}",
    )
