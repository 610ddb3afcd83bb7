"""Work in a process of its own: what it takes is given back, and what it dies of does not take the step with it.

The process is forked from a clean server that has imported the heavy libraries once and computed nothing, so that a start costs
milliseconds and no lock or thread pool of ours is copied into it.
"""

import multiprocessing
import os
import signal
import threading
import time
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


@dataclass(frozen=True)
class Failure:
    """Why a piece of work gave nothing, in one line."""

    reason: str


def preload(*modules: str) -> None:
    """Let the clean server import these too, so that no process does it anew.  Of no effect after the first piece of work."""
    PRELOADED.extend(name for name in modules if name not in PRELOADED)


def run_apart(work: Callable[..., Result], *arguments: Any) -> Result | Failure:
    """`work(*arguments)` in its own process; arguments and result are pickled, so `work` is a function of a module.

    A StillroomError, running out of memory, an error of torch or being killed gives a Failure; an interrupt is passed on.
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
    except StillroomError as error:
        return Failure(" ".join(str(error).split()))
    except MemoryError:
        return Failure("out of memory")
    except (
        RuntimeError,
        ValueError,
        KeyError,
        OSError,
    ) as error:  # torch and transformers raise these for a model that is broken
        return Failure(" ".join(f"{type(error).__name__}: {error}".split())[:300])


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
