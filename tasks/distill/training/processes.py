"""Processes of one machine that share a training and end together.

They are forked from a clean server that has imported the heavy libraries once (`tasks/shared/isolation.py`), connect over the
loopback interface, and end with the process that started them, even if it is killed.
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
"""Seconds for the other processes to fail after the first, so that all reasons are known; then they are killed."""


@dataclass(frozen=True)
class Crew:
    """Address at which the processes meet.

    port: of the store that the starting process serves.
    """

    count: int
    port: int
    backend: str


def share_work(count: int, device: str, work: Callable[..., Result], *arguments: Any) -> Result:
    """Run `work(*arguments)` in torch.distributed processes; return the first one's result.

    Arguments and result are pickled; `work` must be importable.  The first process's log appears here.  An error in any process
    ends all: a StillroomError is raised here unchanged, any other as a RuntimeError with its traceback, and a kill as a
    MachineError.  No process outlives this call, or the calling process.
    """
    from torch.distributed import TCPStore

    preload("trl.trainer.sft_trainer", "datasets")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    store = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
    crew = Crew(count, store.port, "nccl" if device == "cuda" else "gloo")
    results, records = context.SimpleQueue(), context.Queue()
    listener = logging.handlers.QueueListener(records, _Relay())
    listener.start()
    members = [
        context.Process(
            target=_member, args=(rank, crew, ProcessId.of(), dict(os.environ), results, records, work, arguments)
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
    if failed or results.empty():
        raise _reason(members, results.get() if not results.empty() else None)
    result: Result = results.get()
    return result


def _wait(members: Sequence[Any]) -> bool:
    """Wait until all processes have ended, or one has failed and the others had time to follow.

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

    error: the StillroomError; None for any other error, whose traceback is in `text`.
    """

    text: str
    error: StillroomError | None = None


def _reason(members: Sequence[Any], trouble: Trouble | None) -> Exception:
    """Return the error to raise: the first one reported, or that of a killed process."""
    if trouble is not None and trouble.error is not None:
        return trouble.error
    killed = [rank for rank, member in enumerate(members) if member.exitcode == -signal.SIGKILL]
    if killed and (trouble is None or "onnection" in trouble.text):
        return MachineError(
            "runtime.processes",
            f"process {killed[0]} of {len(members)} was killed (signal 9)",
            "memory for each process's copy of weights, gradients and moments",
            "fewer processes, a smaller batch_size or gradient_checkpointing=true; the last checkpoint is kept",
        )
    return RuntimeError(trouble.text if trouble else f"a process ended with {[m.exitcode for m in members]}")


def _member(
    rank: int, crew: Crew, starter: ProcessId, environment: Mapping[str, str], results: Any, records: Any,
    work: Callable[..., Any], arguments: tuple[Any, ...],
) -> None:  # fmt: skip
    """Run one process: join the others, work, report the result or error."""
    end_with(starter)
    os.environ.clear()
    os.environ.update({**environment, **_addresses(rank, crew)})
    _send_log(rank, records)
    try:
        _join(rank, crew)
        result = work(*arguments)
    except StillroomError as error:
        results.put(Trouble(str(error), error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        results.put(Trouble(f"process {rank} of {crew.count} failed\n{traceback.format_exc()}"))
        raise
    if rank == 0:
        results.put(result)
    _leave()


def _send_log(rank: int, records: Any) -> None:
    """Send the first process's log to the starting process; errors only from the others."""
    handler = logging.handlers.QueueHandler(records)
    handler.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    logging.getLogger().handlers = [handler]
    logging.getLogger("tasks").setLevel(logging.INFO)
    logging.getLogger("transformers").handlers.clear()  # it prints for itself as well


def _addresses(rank: int, crew: Crew) -> dict[str, str]:
    """Return environment variables that keep torch, accelerate, gloo and NCCL on loopback."""
    own = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    # torch cannot load to accelerate's default, "cpu:0"
    device = {"ACCELERATE_TORCH_DEVICE": "cpu"} if crew.backend == "gloo" else {}
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
        "OMP_NUM_THREADS": os.environ.get(
            "OMP_NUM_THREADS", "1"
        ),  # avoids a warning by accelerate; the loop sets its own number
    }


def _join(rank: int, crew: Crew) -> None:
    """Join the process group, which accelerate then uses."""
    import torch
    from torch.distributed import TCPStore, init_process_group

    if crew.backend == "nccl":
        torch.cuda.set_device(rank)
    store = TCPStore(LOOPBACK, crew.port, is_master=False)
    init_process_group(crew.backend, store=store, rank=rank, world_size=crew.count)


def _leave() -> None:
    from torch.distributed import barrier, destroy_process_group

    barrier()  # the first to leave closes connections that others need
    with suppress(RuntimeError):
        destroy_process_group()


class _Relay(logging.Handler):
    """Handler that passes another process's records to the logger of the same name here."""

    def emit(self, record: logging.LogRecord) -> None:
        target = logging.getLogger(record.name)
        if target.isEnabledFor(record.levelno):
            target.handle(record)
