"""An objective of two terms for tests, in a module that other processes can import."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.distill.losses.answers import answer_loss, counted, divisor
from tasks.distill.losses.head import output_head
from tasks.distill.training.objective import Answers, Batch, Objective, last_hidden
from tasks.shared.errors import ModelError
from tasks.shared.technique import StepRun

if TYPE_CHECKING:
    from torch import Tensor


class TwoTerms(Objective):
    """Half the cross-entropy, and half the mean square of some of the states that predict.  fault: what rank 1 does."""

    knob = "weight"

    def __init__(self, fault: str = "") -> None:
        self.fault, self.calls = fault, 0

    def terms(self, model: Any, batch: Batch, count: "Tensor | int | None") -> "dict[str, Tensor]":
        if os.environ.get("RANK") == "1":
            self.stumble()
        hidden = last_hidden(model, batch)
        states, tokens = counted(hidden, batch["labels"])
        size = states[:, :8].pow(2).mean(dim=-1).sum() / divisor(tokens, count)
        return {"hard": 0.5 * answer_loss(hidden, output_head(model), batch["labels"], count), "size": 0.5 * size}

    def stumble(self) -> None:
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls += 1
        if self.fault == "orphan" and self.calls == 5:  # the second pass of the third step
            parent = multiprocessing.parent_process()
            assert parent is not None and parent.pid is not None
            os.kill(parent.pid, signal.SIGKILL)
        if self.fault == "refuse":
            raise ModelError("model", "it stumbles", "one that does not", "another model")
        if self.fault == "break":
            raise ValueError("a mistake of ours")


def train_in(room: float, model: Path, folder: Path, settings: dict[str, Any]) -> int:
    """Optimizer steps of one epoch in a process that may have so many more bytes than it has now."""
    import resource

    import datasets  # noqa: F401 - code takes address space too
    import psutil
    import torch
    import trl.trainer.sft_trainer  # noqa: F401

    from tasks.distill.sft import SFT
    from tasks.distill.training.loop import train_model
    from tests.tiny_llama import chats

    torch.set_num_threads(1)
    limit = int(psutil.Process().memory_info().vms + room)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    folder.mkdir(exist_ok=True)
    run = StepRun("step", 0, folder / "scratch", threads=1)
    fixed = {"epochs": 1, "validation": 0.0, "precision": "float32"}
    return int(train_model(SFT(**fixed, **settings), model, chats(256), Answers(), folder, run)["optimizer_steps"])
