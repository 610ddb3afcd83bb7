"""Interface of trackers, and a tracker that records nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tasks.shared.technique import Artifact, Kind


@dataclass(frozen=True)
class StepRecord:
    """One finished step.

    manifest: manifest of its artifact.
    folder: folder with out/ and manifest.json.
    executed: this run made the artifact; False if it was found.
    inputs: artifacts that the step read, by port.
    prefect: tags that identify its Prefect task run, such as prefect.task_run_id.
    variant: the run differs from the recipe as written, so a shipped model is registered but does not become champion.
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
    """Recorder of one flow, used by one thread at a time.

    A server that is down never raises an error.
    """

    @property
    def run_id(self) -> str:
        """MLflow's id of the flow's run; empty until a server has it."""
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
    """Tracker that records nothing."""

    run_id = ""
    address = ""
    link = ""

    def start(self, name: str, tags: Mapping[str, str]) -> None:
        """Do nothing."""

    def step(self, record: StepRecord) -> None:
        """Do nothing."""

    def finish(self, status: str) -> None:
        """Do nothing."""
