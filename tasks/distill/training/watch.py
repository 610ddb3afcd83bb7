"""Callbacks that watch a training: progress, divergence, overfitting."""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import TechniqueError
from tasks.shared.progress import progress_bar

if TYPE_CHECKING:
    from transformers import TrainerCallback

log = logging.getLogger(__name__)
RUNAWAY = 3.0
"""Training diverges if the loss is this many times the first one for LINES logged lines.  First losses below 1 count as 1, since a
student that starts as a copy of its teacher has a loss near zero.
"""
LINES = 3


def runs_away(history: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if training diverges.

    The loss is not finite, or the last LINES logged losses are RUNAWAY times the first.
    """
    losses = [float(entry["loss"]) for entry in history if "loss" in entry]
    losses += [float(entry["eval_loss"]) for entry in history[-1:] if "eval_loss" in entry and not losses]
    if not losses:
        return False
    if not math.isfinite(losses[-1]):
        return True
    late = losses[1:][-LINES:]
    return len(late) == LINES and all(loss > RUNAWAY * max(losses[0], 1.0) for loss in late)


def overfits(history: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if validation loss exceeds its best by a tenth while training loss falls."""
    held = [(entry["step"], float(entry["eval_loss"])) for entry in history if "eval_loss" in entry]
    if len(held) < 2:
        return False
    best_step, best = min(held, key=lambda pair: pair[1])
    before = [float(entry["loss"]) for entry in history if "loss" in entry and entry["step"] <= best_step]
    after = [float(entry["loss"]) for entry in history if "loss" in entry]
    return held[-1][1] > 1.1 * best and bool(before) and after[-1] < before[-1]


def watcher(step: str) -> "TrainerCallback":
    """Return a callback that advances the progress bar and stops a diverging training.

    The best epoch is then kept; without one, the callback raises TechniqueError with a fix.
    """
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.stack = ExitStack()
            self.note = ""
            self.advance = self.stack.enter_context(progress_bar("training", state.max_steps))
            self.advance(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.advance(1, self.note)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any
        ) -> None:
            loss = (logs or {}).get("loss", (logs or {}).get("eval_loss"))
            if loss is None or control.should_training_stop:  # the epoch cut short is still evaluated
                return
            if not runs_away(state.log_history):
                self.note = f"loss {float(loss):.3f}"
                return
            advice = f"steps.{step}.learning_rate={args.learning_rate / 4:g}"
            if state.best_model_checkpoint is None:
                self.stack.close()
                raise TechniqueError(
                    f"steps.{step}.learning_rate",
                    f"the loss is {loss} at step {state.global_step}",
                    "a loss that falls",
                    f"a smaller step: {advice}",
                )
            log.warning(
                "training diverged (loss %s at step %d); the epoch that ended at step %d is kept; a smaller learning rate may help: %s",
                loss, state.global_step, state.best_global_step, advice,
            )  # fmt: skip
            control.should_training_stop = True

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.stack.close()

    return Watcher()
