"""Weights of an early optimizer step, kept for `prune/rewind`.

Source: Frankle et al. 2020, arXiv 1912.05671: masks found after a training fit the weights of an early step of it, not the first ones.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.distill.training.masks import plain_name
from tasks.shared.errors import TechniqueError
from tasks.shared.model.head import core_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback

FILE = "early.safetensors"


def early_keeper(trainer: Any, wanted: int, scratch: Path, step: str) -> "TrainerCallback":
    """Return a callback that writes the weights of one optimizer step to scratch.

    wanted: the step; 0 writes none.
    The file is complete or absent, and survives a kill as checkpoints do.
    Raises TechniqueError if the training is shorter.
    """
    from transformers import TrainerCallback

    class EarlyKeeper(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if wanted >= state.max_steps:
                raise TechniqueError(
                    f"steps.{step}.early_step",
                    f"{wanted}, and the training has {state.max_steps} optimizer steps",
                    "an early step",
                    f"steps.{step}.early_step={max(1, state.max_steps // 10)}",
                )

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == wanted and state.is_world_process_zero:
                write_weights(core_of(trainer.accelerator.unwrap_model(trainer.model)), scratch / FILE)

    return EarlyKeeper() if wanted else TrainerCallback()


def write_weights(model: "PreTrainedModel", file: Path) -> None:
    """Write a model's parameters in float32, each once; `file` is complete or absent."""
    from safetensors.torch import save_file

    weights = {
        plain_name(name): weight.detach().float().cpu().contiguous().clone()
        for name, weight in model.named_parameters()
    }
    part = file.with_suffix(".part")
    save_file(weights, part)
    part.replace(file)


def put_back(model: "PreTrainedModel", scratch: Path, step: str) -> None:
    """Give a model the weights of the early step, in place.

    Raises TechniqueError if the training ended before that step.
    model: with the parameters of the trained one, tied weights once; further ones in the file, such as learned scales, are left out.
    """
    import torch
    from safetensors.torch import load_file

    if not (scratch / FILE).is_file():
        raise TechniqueError(
            f"steps.{step}.early_step", "a step that the training, which stopped early, did not reach", "an earlier one",
            f"steps.{step}.patience=0, or a smaller early_step",
        )  # fmt: skip
    early = load_file(scratch / FILE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(early[name])
