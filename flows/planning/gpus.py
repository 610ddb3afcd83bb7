"""GPUs of this machine, each with a file lock that the process of a step holds.

Prefect's limits need a server and can leak with one; `dvc repro` has none.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from filelock import FileLock, Timeout

from tasks.shared.errors import MachineError

POLL_S = 0.1
QUERY_S = 10
VISIBLE = "CUDA_VISIBLE_DEVICES"


def gpus() -> list[str]:
    """Names of the GPUs that this process may use, as in CUDA_VISIBLE_DEVICES.

    Empty if that variable hides all of them.
    """
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return list(takewhile(lambda name: name and not name.startswith("-"), names))  # CUDA stops at the first bad one
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))] or ["0"]


def may_use_gpu(device: str) -> bool:
    """Return True if `runtime.device` can mean a GPU.

    Does not import torch, which reads CUDA_VISIBLE_DEVICES only once.
    """
    return device == "cuda" or (device == "auto" and bool(gpus()) and any(Path("/dev").glob("nvidia[0-9]*")))


@contextmanager
def hold_gpu(wanted: int) -> Iterator[str]:
    """Wait for free GPUs, lock them and hide all others from this process.

    Yields their names, or "" if none is wanted.  Locks are per user.  A process never holds some GPUs while it waits for more, so two
    processes cannot deadlock.  Raises MachineError if this machine has fewer GPUs.
    """
    if not wanted:
        yield ""
        return
    folder = Path(tempfile.gettempdir())
    locks = {gpu: FileLock(folder / f"stillroom-{os.getuid()}-gpu-{gpu}.lock") for gpu in gpus()}
    if wanted > len(locks):
        raise MachineError(
            "runtime.processes",
            f"{wanted} process{'es' * (wanted > 1)}, and {len(locks)} GPU{'s' * (len(locks) != 1)}",
            "a GPU for each process",
            "runtime.processes=0 takes one process for each GPU; runtime.device=cpu takes none"
            if locks
            else f"{VISIBLE} hides all GPUs: unset it, or use runtime.device=cpu",
        )
    while not (held := _take(locks, wanted)):
        time.sleep(POLL_S)
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ",".join(held)
    try:
        yield ",".join(held)
    finally:
        for gpu in held:
            locks[gpu].release()
        os.environ.pop(VISIBLE)
        if before is not None:
            os.environ[VISIBLE] = before


def _take(locks: Mapping[str, FileLock], wanted: int) -> list[str]:
    """Lock this many free GPUs and return their names; empty if too few are free."""
    held: list[str] = []
    for gpu, lock in locks.items():
        with suppress(Timeout):
            lock.acquire(timeout=0)
            held.append(gpu)
        if len(held) == wanted:
            return held
    for gpu in held:
        locks[gpu].release()
    return []


def gpu_memory() -> float:
    """Memory of the smallest GPU that this process may use, bytes; 0 if unknown."""
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0.0
    usable = set(gpus())
    rows = [[cell.strip() for cell in line.split(",")] for line in listed.splitlines()]
    sizes = [float(memory) * 2**20 for index, uuid, memory in rows if memory.isdigit() and usable & {index, uuid}]
    return min(sizes, default=0.0)
