"""Records of finished steps for MLflow and DVC, written by one thread while other steps run."""

import logging
import queue
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.tracking import StepRecord, Tracker
from flows.versioning.commit import record
from tasks.shared.store.artifacts import SHORT

log = logging.getLogger("stillroom")


class Recorder:
    """Queue of records for MLflow and DVC; a failure here never loses an artifact.

    notes: folder with an empty file per artifact that the tracker has recorded, so that the next run need not query a server.
    The next run also records artifacts that `dvc repro` made, or that a killed run did not record.
    """

    def __init__(self, tracker: Tracker, notes: Path | None = None) -> None:
        self.tracker = tracker
        self.notes = notes
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self.waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self.pending: list[Future[Any]] = []

    def start(self, name: str, tags: Mapping[str, str]) -> None:
        """Record the start of the run."""
        self._later(self.tracker.start, name, tags)

    def step(self, step: StepRecord, stage: str | None) -> None:
        """Record a finished step.

        stage: its stage in dvc.yaml if DVC records it, else None.
        """
        self._later(self._track, step)
        if stage:
            self.waiting.put((stage, str(step.manifest["key"])))
            self._later(self._dvc)

    def has_recorded(self, key: str) -> bool:
        """Return True if the tracker has recorded this artifact, in this run or an earlier one."""
        return self.notes is None or (self.notes / key[:SHORT]).is_file()

    def settle(self) -> None:
        """Wait until every record so far is written; raises unexpected errors."""
        pending, self.pending = self.pending, []
        for item in pending:
            item.result()

    def finish(self, status: str) -> None:
        """Record the end of the run and wait for the last record."""
        self._later(self.tracker.finish, status)
        try:
            self.settle()
        finally:
            self.worker.shutdown()

    def _track(self, step: StepRecord) -> None:
        self.tracker.step(step)
        if self.notes is not None:
            with suppress(OSError):  # without the note the next run sends the record again, and MLflow ignores it
                self.notes.mkdir(parents=True, exist_ok=True)
                (self.notes / str(step.manifest["key"])[:SHORT]).touch()

    def _dvc(self) -> None:
        """Record all waiting stages with one call of DVC."""
        stages: dict[str, str] = {}
        with suppress(queue.Empty):
            while True:
                stage, key = self.waiting.get_nowait()
                stages[stage] = key
        if stages:
            record(stages)

    def _later(self, call: Any, *arguments: Any) -> None:
        self.pending.append(self.worker.submit(call, *arguments))
