"""Memory of freed tensors, which glibc keeps for the process unless it is asked for it."""

import ctypes
import sys

M_MMAP_THRESHOLD, PIECE = -3, 2**20
"""Option of mallopt(3): the size, in bytes, from which glibc maps memory separately and unmaps it when freed."""


def return_freed_memory() -> None:
    """Return to the system what has been freed until now.  Does nothing without glibc."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def return_memory_at_once() -> None:
    """Return freed tensors to the system from now on: less memory for more time on a CPU.

    Does nothing without glibc.
    By default, glibc keeps pieces of up to 32 MiB, and recomputed layers fragment most of the memory that recomputation should
    save (docs/LOG.md).
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(M_MMAP_THRESHOLD, PIECE)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
