"""One GPU of this machine for a step: a file lock for each, held by the step's own process whoever started it.

Prefect's limits do nothing without a server and can leak with one; `dvc repro` knows no limits.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

POLL_S = 0.1


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [name for name in visible.split(",") if name]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))] or ["0"]


def may_use_gpu(device: str) -> bool:
    """Whether `runtime.device` can come to mean a GPU, without importing torch, which reads CUDA_VISIBLE_DEVICES once."""
    return device == "cuda" or (device == "auto" and any(Path("/dev").glob("nvidia[0-9]*")))


@contextmanager
def hold_gpu(wanted: bool) -> Iterator[str]:
    """Wait for a free GPU, hold it, and let this process see that one alone; yields its name, or "" if none is wanted.

    Runs of one user exclude each other; other users' locks are theirs.
    """
    if not wanted:
        yield ""
        return
    folder = Path(tempfile.gettempdir())
    locks = [(gpu, FileLock(folder / f"stillroom-{os.getuid()}-gpu-{gpu}.lock")) for gpu in gpus()]
    while True:
        for gpu, lock in locks:
            with suppress(Timeout):
                lock.acquire(timeout=0)
                before = os.environ.get("CUDA_VISIBLE_DEVICES")
                os.environ["CUDA_VISIBLE_DEVICES"] = gpu
                try:
                    yield gpu
                finally:
                    lock.release()
                    os.environ.pop("CUDA_VISIBLE_DEVICES")
                    if before is not None:
                        os.environ["CUDA_VISIBLE_DEVICES"] = before
                return
        time.sleep(POLL_S)
