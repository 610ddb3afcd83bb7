"""The interface of trackers, and a tracker that records nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tasks.shared.technique import Artifact, Kind


@dataclass(frozen=True)
class StepRecord:
    """One finished step.

    manifest: the artifact's.  folder: holds out/ and manifest.json.  executed: made in this run, not found.
    inputs: the artifacts it read, by port.  prefect: tags that lead to its task run, such as prefect.task_run_id.
    variant: the run differs from the recipe as written, so what it ships is registered but is no champion.
    """

    name: str
    kind: Kind
    manifest: Mapping[str, Any]
    folder: Path
    executed: bool
    inputs: Mapping[str, tuple[Artifact, ...]]
    prefect: Mapping[str, str] = field(default_factory=dict)
    variant: bool = False


class Tracker(Protocol):
    """Records one flow.  Callable from any one thread; a server that is down is never an error."""

    @property
    def run_id(self) -> str:
        """MLflow's id of the flow's run; empty as long as no server has it."""
        ...

    @property
    def address(self) -> str:
        """Address of the server, safe to print; empty for none."""
        ...

    @property
    def link(self) -> str:
        """The run's page in a browser; empty if there is none."""
        ...

    def start(self, name: str, tags: Mapping[str, str]) -> None:
        """Open the run of the whole flow."""

    def step(self, record: StepRecord) -> None:
        """Record one finished step."""

    def finish(self, status: str) -> None:
        """Close the run: FINISHED, FAILED or KILLED."""


class NullTracker:
    """Records nothing."""

    run_id = ""
    address = ""
    link = ""

    def start(self, name: str, tags: Mapping[str, str]) -> None:
        """Nothing."""

    def step(self, record: StepRecord) -> None:
        """Nothing."""

    def finish(self, status: str) -> None:
        """Nothing."""
