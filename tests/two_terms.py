"""An objective of two terms for tests, in a module that other processes can import."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.distill.losses.answers import answer_loss, divisor
from tasks.distill.training.objective import Answers, Batch, Objective, last_hidden
from tasks.shared.errors import ErrorList, ModelError
from tasks.shared.formats.rows import Row
from tasks.shared.model.encoding import counted
from tasks.shared.model.head import core_of, output_head
from tasks.shared.technique import Compute, StepRun

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
        if self.fault == "want half" and (share := share_of_weights(model)) > 0.6:
            raise ValueError(f"this process has {share:.0%} of the layers' weights")
        hidden = last_hidden(model, batch)
        states, tokens = counted(hidden, batch["labels"])
        size = states[:, :8].float().pow(2).mean(dim=-1).sum() / divisor(tokens, count)
        return {"hard": 0.5 * answer_loss(hidden, output_head(model), batch["labels"], count), "size": 0.5 * size}

    def stumble(self) -> None:
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls += 1
        third = self.calls == 5  # the second pass of the third step
        if self.fault == "late kill" and third:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "orphan" and third:
            parent = multiprocessing.parent_process()
            assert parent is not None and parent.pid is not None
            os.kill(parent.pid, signal.SIGKILL)
        if self.fault == "refuse":
            raise ModelError("model", "it stumbles", "one that does not", "another model")
        if self.fault == "break":
            raise ValueError("a mistake of ours")


def find_two_errors(*_: Any) -> None:
    """Work of a process that ends with several errors at once."""
    raise ErrorList([ModelError("model", "no head", fix="another model"), ModelError("model", "no layers")])


def share_of_weights(model: Any) -> float:
    """How much of the layers' weights this process keeps."""
    from torch.distributed.tensor import DTensor

    weights = list(core_of(model).model.layers.parameters())
    kept = sum(weight.to_local().numel() if isinstance(weight, DTensor) else weight.numel() for weight in weights)
    return kept / sum(weight.numel() for weight in weights)


def train_in(room: float, model: Path, folder: Path, settings: dict[str, Any]) -> int:
    """Optimizer steps of one epoch over long conversations, in a process that may have so many more bytes than it has now.

    A training of its own comes before: libraries, threads and the allocator's arenas take hundreds of MB of address space, more on
    one machine than on another.
    """
    import resource

    import psutil
    import torch

    from tasks.distill.sft import SFT
    from tasks.distill.training.loop import train_model
    from tests.tiny_llama import chats

    def train(name: str, rows: list[Row], **more: Any) -> int:
        (folder / name).mkdir(parents=True)
        run = StepRun("step", 0, folder / f"{name}-scratch", compute=Compute(threads=1))
        chosen = SFT(epochs=1, validation=0.0, precision="float32", **more)
        return int(train_model(chosen, model, rows, Answers(), folder / name, run)["optimizer_steps"])

    torch.set_num_threads(1)
    train("before", chats(8), batch_size=8)
    limit = int(psutil.Process().memory_info().vms + room)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return train("limited", [longer(row) for row in chats(256)], **settings)


def longer(row: Row, times: int = 10) -> Row:
    """The same question, its answer so many times over."""
    asked, answer = row.messages
    return row.model_copy(
        update={"messages": (asked, answer.model_copy(update={"content": " ".join([answer.content] * times)}))}
    )
