"""Work in a process of its own: what it takes is given back, and what it dies of does not take the step with it.

The process is forked from a clean server that has imported the heavy libraries once and computed nothing, so that a start costs
milliseconds and no lock or thread pool of ours is copied into it.
"""

import errno
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

from tasks.shared.errors import StillroomError

Result = TypeVar("Result")
PRELOADED = [
    "torch",
    "transformers.modeling_utils",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
]
"""Imported once by the server instead of in every child, which takes seconds each time."""

LONGEST = 300
"""Characters of an error that is not ours."""


@dataclass(frozen=True)
class Failure:
    """Why a piece of work gave nothing, in one line."""

    reason: str


def preload(*modules: str) -> None:
    """Let the clean server import these too, so that no process does it anew.  Of no effect after the first piece of work."""
    PRELOADED.extend(name for name in modules if name not in PRELOADED)


def run_isolated(work: Callable[..., Result], *arguments: Any) -> Result | Failure:
    """`work(*arguments)` in its own process; arguments and result are pickled, so `work` is a function of a module.

    Whatever it raises, running out of memory or being killed gives a Failure.  An error that is none of our own is named by its
    type, and its traceback goes to standard error: broken models raise anything, and so do our own mistakes.
    An interrupt is passed on, and so is the OSError of a full disk, which says nothing about the model.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, mp_context=context, initializer=_follow_parent, initargs=(os.getpid(),)) as pool:
        try:
            return pool.submit(_guarded, work, arguments).result()
        except BrokenProcessPool:
            return Failure("its process was killed: out of memory, most likely")


def _guarded(work: Callable[..., Result], arguments: tuple[Any, ...]) -> Result | Failure:
    try:
        return work(*arguments)
    except MemoryError:
        return Failure("out of memory")
    except Exception as error:
        if (full := _full_disk(error)) is not None:
            raise OSError(full.errno, full.strerror, full.filename) from error
        if isinstance(error, StillroomError):
            return Failure(" ".join(str(error).split()))
        traceback.print_exc()
        return Failure(" ".join(f"{type(error).__name__}: {error}".split())[:LONGEST])


def _full_disk(error: BaseException | None) -> OSError | None:
    """The error of a full disk, if this is one or comes of one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return error
        error = error.__cause__ or error.__context__
    return None


def _follow_parent(parent: int) -> None:
    """End this process when the step that wants its result is gone."""

    def watch() -> None:
        while True:
            try:
                os.kill(parent, 0)
            except ProcessLookupError:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1)

    threading.Thread(target=watch, daemon=True).start()
