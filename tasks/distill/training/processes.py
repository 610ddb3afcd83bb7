"""Several processes of this machine that work on one training together, and end together.

They are forked from a clean server that has imported the heavy libraries once (`tasks/shared/isolation.py`), find each other over the
loopback interface, and end with the process that started them, also when that is killed.
"""

import logging
import logging.handlers
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, TypeVar

from tasks.shared.errors import MachineError, StillroomError
from tasks.shared.isolation import PRELOADED, preload
from tasks.shared.processes import ProcessId, end_with

Result = TypeVar("Result")
LOOPBACK = "127.0.0.1"
AFTERMATH_S = 2.0
"""How long the others may take to die of one's death, so that all reasons are known; then they are killed."""


@dataclass(frozen=True)
class Crew:
    """Address by which the processes find each other.

    port: of the store that the starting process serves.
    """

    count: int
    port: int
    backend: str


def share_work(count: int, device: str, work: Callable[..., Result], *arguments: Any) -> Result:
    """Run `work(*arguments)` in several torch.distributed processes; return the first's result.

    Arguments and result are pickled; `work` must be importable.  The first process' log appears here.  An error in one of
    them ends all: one of our errors is raised here unchanged, another as a RuntimeError with its traceback; MachineError
    if one was killed.  No process outlives this call, or the calling process.
    """
    from torch.distributed import TCPStore

    preload("trl.trainer.sft_trainer", "datasets")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    store = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
    crew = Crew(count, store.port, "nccl" if device == "cuda" else "gloo")
    told, records = context.SimpleQueue(), context.Queue()
    listener = logging.handlers.QueueListener(records, _Relay())
    listener.start()
    members = [
        context.Process(
            target=_member, args=(rank, crew, ProcessId.of(), dict(os.environ), told, records, work, arguments)
        )
        for rank in range(count)
    ]
    try:
        for member in members:
            member.start()
        failed = _wait(members)
    finally:
        for member in members:
            if member.pid is not None:
                member.kill()
                member.join()
        listener.stop()
    if failed or told.empty():
        raise _reason(members, told.get() if not told.empty() else None)
    result: Result = told.get()
    return result


def _wait(members: Sequence[Any]) -> bool:
    """Wait until all have ended, or one has failed and the others had time to follow.

    Returns True if one failed.
    """
    left = {member.sentinel: member for member in members}
    failed = False
    while left:
        ended = wait(list(left), AFTERMATH_S if failed else None)
        if not ended:
            break
        for sentinel in ended:
            member = left.pop(sentinel)
            member.join()
            failed = failed or member.exitcode != 0
    return failed


@dataclass(frozen=True)
class Trouble:
    """Error of a process.

    error: one of our errors, whole; None for any other error, whose traceback is in `text`.
    """

    text: str
    error: StillroomError | None = None


def _reason(members: Sequence[Any], trouble: Trouble | None) -> Exception:
    """Error to raise: the first one reported, or that of a killed process that others lost."""
    if trouble is not None and trouble.error is not None:
        return trouble.error
    killed = [rank for rank, member in enumerate(members) if member.exitcode == -signal.SIGKILL]
    if killed and (trouble is None or "onnection" in trouble.text):
        return MachineError(
            "runtime.processes",
            f"process {killed[0]} of {len(members)} was killed (signal 9)",
            "memory for each process' own copy of weights, gradients and moments",
            "fewer processes, a smaller batch_size or gradient_checkpointing=true; the last checkpoint is kept",
        )
    return RuntimeError(trouble.text if trouble else f"a process ended with {[m.exitcode for m in members]}")


def _member(
    rank: int, crew: Crew, starter: ProcessId, environment: Mapping[str, str], told: Any, records: Any,
    work: Callable[..., Any], arguments: tuple[Any, ...],
) -> None:  # fmt: skip
    """One process' life."""
    end_with(starter)
    os.environ.clear()
    os.environ.update({**environment, **_addresses(rank, crew)})
    _send_log(rank, records)
    try:
        _join(rank, crew)
        result = work(*arguments)
    except StillroomError as error:
        told.put(Trouble(str(error), error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        told.put(Trouble(f"process {rank} of {crew.count} failed\n{traceback.format_exc()}"))
        raise
    if rank == 0:
        told.put(result)
    _leave()


def _send_log(rank: int, records: Any) -> None:
    """Send the first process' log to the starting process; of the others, only errors."""
    handler = logging.handlers.QueueHandler(records)
    handler.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    logging.getLogger().handlers = [handler]
    logging.getLogger("tasks").setLevel(logging.INFO)
    logging.getLogger("transformers").handlers.clear()  # it prints for itself as well


def _addresses(rank: int, crew: Crew) -> dict[str, str]:
    """Environment variables for torch, accelerate, gloo and NCCL, all on the loopback interface."""
    own = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    device = (
        {"ACCELERATE_TORCH_DEVICE": "cpu"} if crew.backend == "gloo" else {}
    )  # its "cpu:0" is none that torch loads to
    return {
        **device,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(crew.count),
        "LOCAL_WORLD_SIZE": str(crew.count),
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(crew.port),
        "GLOO_SOCKET_IFNAME": own,
        "NCCL_SOCKET_IFNAME": own,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),  # accelerate warns without; the loop sets its own
    }


def _join(rank: int, crew: Crew) -> None:
    """Meet the others at the store.  accelerate takes the process group that is there."""
    import torch
    from torch.distributed import TCPStore, init_process_group

    if crew.backend == "nccl":
        torch.cuda.set_device(rank)
    store = TCPStore(LOOPBACK, crew.port, is_master=False)
    init_process_group(crew.backend, store=store, rank=rank, world_size=crew.count)


def _leave() -> None:
    from torch.distributed import barrier, destroy_process_group

    barrier()  # who leaves first takes its connections along
    with suppress(RuntimeError):
        destroy_process_group()


class _Relay(logging.Handler):
    """Hands a record of another process to the logger of that name here."""

    def emit(self, record: logging.LogRecord) -> None:
        target = logging.getLogger(record.name)
        if target.isEnabledFor(record.levelno):
            target.handle(record)
