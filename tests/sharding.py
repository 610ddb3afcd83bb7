"""FSDP without GPUs: what accelerate does for several of them, on CPUs, for which it declines to shard."""

from collections.abc import Callable
from typing import Any

import pytest

from tasks.distill.training import loop, processes


def shard_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on `runtime.sharding=fsdp` shards between gloo processes."""

    def share(count: int, device: str, work: Callable[..., Any], *arguments: Any) -> Any:
        return processes.share_work(count, device, _sharded, work, *arguments)

    monkeypatch.setattr(loop, "share_work", share)
    monkeypatch.setattr(loop, "check_processes", lambda *_: None)


def _sharded(work: Callable[..., Any], *arguments: Any) -> Any:
    """In each process: `work`, with accelerate told that this is a place to shard."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    usual: Any = AcceleratorState.__init__

    def begin(self: Any, *more: Any, fsdp_plugin: Any = None, **named: Any) -> None:
        usual(self, *more, fsdp_plugin=fsdp_plugin, **named)
        if fsdp_plugin is not None:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = begin
    return work(*arguments)
