"""Flow runs on a Prefect server: ends dead runs there, and runs canceled there here.

A run that is killed with signal 9 would stay RUNNING on the server.  So each run holds a file lock as long as its process
lives; the next run that can take the lock knows that the process has ended.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from filelock import FileLock, Timeout
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import StateType
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectException
from prefect.states import Crashed

from flows.orchestration.servers import has_server, server_name
from flows.planning.gpus import gpus
from flows.running.child import Stopped
from flows.running.runner import Run

log = logging.getLogger("stillroom")
POLL_S = 2.0
JOIN_S = 5.0
SLOT_S = 5.0
SETTLE_S = 30.0
UNREACHABLE = (httpx.HTTPError, PrefectException)


@contextmanager
def present(root: Path, flow_run: str) -> Iterator[None]:
    """End the runs of dead processes on the server; mark this run as alive in the block.

    The note stays after the block: the next sweep checks that the server has recorded the run's end.
    """
    folder = root / "artifacts" / ".runs"
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    with FileLock(folder / f"{flow_run}.lock"):
        note = {"server": server_name(), "pid": os.getpid()}
        (folder / f"{flow_run}.json").write_text(json.dumps(note), "utf-8")
        yield


def sweep(folder: Path) -> None:
    """Mark runs as crashed that the server shows as running although their process has ended."""
    for note in sorted(folder.glob("*.json")):
        lock = FileLock(note.with_suffix(".lock"))
        with suppress(Timeout, OSError, ValueError), lock.acquire(timeout=0):
            if json.loads(note.read_text("utf-8")).get("server") != server_name():
                continue
            with suppress(*UNREACHABLE), get_client(sync_client=True) as client:
                if crash(client, UUID(note.stem)):
                    log.info("an earlier run's process is gone; Prefect shows it as crashed now (%s)", note.stem)
                note.unlink(missing_ok=True)
                note.with_suffix(".lock").unlink(missing_ok=True)


def crash(client: SyncPrefectClient, flow_run: UUID) -> bool:
    """Force a flow run and its unfinished tasks into Crashed.

    Returns False if the run has ended or is unknown.
    """
    try:
        state = client.read_flow_run(flow_run).state
    except ObjectNotFound:
        return False
    if state is not None and state.is_final():
        return False
    gone: Any = Crashed(message="its process is gone")
    for task in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))):
        if task.state is not None and not task.state.is_final():
            client.set_task_run_state(task.id, gone, force=True)
    client.set_flow_run_state(flow_run, gone, force=True)
    return True


def settle(flow_run: str, expected: Callable[[], int]) -> None:
    """Wait until the server has recorded the end of this many tasks.

    States are sent as events, which the server handles later; a temporary server that ends at once loses them.
    """
    filters = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(flow_run)]))
    deadline = time.monotonic() + SETTLE_S
    with suppress(*UNREACHABLE), get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            tasks = client.read_task_runs(flow_run_filter=filters)
            if sum(task.state is not None and task.state.is_final() for task in tasks) >= expected():
                return
            time.sleep(0.1)


@contextmanager
def watched(run: Run, flow_run: str) -> Iterator[None]:
    """Stop the run's steps when the flow run is canceled on the server."""
    over = threading.Event()

    def look() -> None:
        with get_client(sync_client=True) as client:
            while not over.wait(POLL_S):
                with suppress(*UNREACHABLE):
                    state = client.read_flow_run(UUID(flow_run)).state
                    if state is not None and state.type in {StateType.CANCELLING, StateType.CANCELLED}:
                        run.stop.set()
                        return

    thread = threading.Thread(target=look, daemon=True, name="watch")
    if has_server():
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread.is_alive():
            thread.join(JOIN_S)  # a server that does not answer may hold it longer


def limit_gpus(name: str) -> None:
    """Limit the tasks that hold a GPU to this machine's GPUs.  An existing limit is kept."""
    with suppress(*UNREACHABLE), get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            limit = GlobalConcurrencyLimitCreate(name=name, limit=max(1, len(gpus())), active=True)
            with suppress(ObjectAlreadyExists):
                client.create_global_concurrency_limit(limit)


@contextmanager
def gpu_slot(name: str, stop: threading.Event) -> Iterator[None]:
    """Hold a slot of the server's limit of this name; an empty name means no limit.

    Acquired here because Prefect's own wait for a tag's limit cannot be interrupted.  `flows.planning.gpus.hold_gpu` locks the
    GPU itself; the limit lets Prefect's pages show and control the waiting steps.  Raises Stopped.
    """
    with ExitStack() as stack:
        while name and has_server():
            try:
                stack.enter_context(concurrency(name, timeout_seconds=SLOT_S, lease_duration=60))
                break
            except TimeoutError:
                if stop.is_set():
                    raise Stopped from None
            except (*UNREACHABLE, ConcurrencySlotAcquisitionError):
                break  # no server, no limit
        yield
