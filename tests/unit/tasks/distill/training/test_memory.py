"""Freed memory goes back to the system during a training on a CPU."""

import ctypes
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tasks.distill.training.memory import TRIM_EVERY, trimmer


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's call")
@pytest.mark.parametrize(("device", "calls"), [("cpu", 3), ("cuda", 0)])
def test_freed_memory_is_returned_every_few_steps(monkeypatch: pytest.MonkeyPatch, device: str, calls: int) -> None:
    seen: list[int] = []
    libc = SimpleNamespace(malloc_trim=seen.append, gnu_get_libc_version=None)
    callback, nothing = trimmer(device), cast(Any, None)
    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda _: libc)
        for step in range(1, 3 * TRIM_EVERY + 1):
            callback.on_step_end(nothing, SimpleNamespace(global_step=step), nothing)  # type: ignore[arg-type]
    assert seen == [0] * calls


def test_a_library_without_the_call_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    callback, nothing = trimmer("cpu"), cast(Any, None)
    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
        callback.on_step_end(nothing, SimpleNamespace(global_step=TRIM_EVERY), nothing)  # type: ignore[arg-type]
