"""MLflow behind one small interface; `NullTracker` is its twin that records nothing.

A parent run per flow, a child per step that really ran; a reused step is a tag on the parent.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tasks.shared.keys import flatten
from tasks.shared.technique import Artifact, Kind

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepRecord:
    """One finished step."""

    name: str
    kind: Kind
    manifest: Mapping[str, Any]
    folder: Path
    executed: bool
    inputs: Mapping[str, tuple[Artifact, ...]]
    prefect: Mapping[str, str] = field(default_factory=dict)


class Tracker(Protocol):
    """What a flow tells about itself."""

    run_id: str
    address: str
    link: str

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


PAGES = (
    "report.html",
    "report.json",
    "verdict.json",
    "metrics.json",
    "card.json",
    "usage.json",
    "parity.json",
    "loss.csv",
    "influence.csv",
)
"""Small files of a step's output that are logged as artifacts; weights stay where they are, named by path and digest."""


class MlflowTracker:
    """MLflow tracking in a sqlite file, or wherever `uri` points.

    The first opening of a sqlite database migrates its schema and breaks it for good when two processes do so at once,
    hence the file lock.
    """

    def __init__(self, uri: str, root: Path, experiment: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "true")
        import mlflow
        from filelock import FileLock

        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        self.address = self.uri = uri or f"sqlite:///{root / 'mlflow.db'}"
        (root / "artifacts").mkdir(parents=True, exist_ok=True)
        with FileLock(root / "artifacts" / ".mlflow.lock", timeout=120):
            self.client = mlflow.MlflowClient(self.uri)
            found = self.client.get_experiment_by_name(experiment)
            self.experiment = (
                found.experiment_id
                if found
                else self.client.create_experiment(
                    experiment,
                    artifact_location=(root / "mlartifacts").as_uri() if self.uri.startswith("sqlite") else None,
                )
            )
        self.parent = self.run_id = self.link = ""

    def start(self, name: str, tags: Mapping[str, str]) -> None:
        """Open the parent run."""
        self.parent = self.client.create_run(self.experiment, run_name=name, tags=dict(tags)).info.run_id

    def step(self, record: StepRecord) -> None:
        """A child run with params, metrics, curves and small files; for a reused step, a tag that names the run that made it."""
        name, manifest, folder, executed = record.name, record.manifest, record.folder, record.executed
        if not executed:
            made_by = self.client.search_runs([self.experiment], f"tags.stage_key = '{manifest['key']}'", max_results=1)
            self.client.set_tag(self.parent, f"reused.{name}", made_by[0].info.run_id if made_by else manifest["key"])
            return
        tags = {
            "mlflow.parentRunId": self.parent,
            "stage_key": manifest["key"],
            "step": name,
            "output": manifest["output"],
            "folder": str(folder),
        }
        run = self.client.create_run(self.experiment, run_name=name, tags=tags).info.run_id
        for key, value in flatten(manifest["settings"]).items():
            self.client.log_param(run, key, str(value)[:500])
        figures = {
            **manifest["metrics"],
            "duration_s": manifest["duration_s"],
            "peak_memory_bytes": manifest["peak_memory_bytes"],
        }
        for key, value in figures.items():
            if isinstance(value, int | float):
                self.client.log_metric(run, key, float(value))
                self.client.log_metric(self.parent, f"{name}.{key}", float(value))
        self._curve(run, folder / "out" / "loss.csv")
        for file in [folder / "manifest.json", *(folder / "out" / page for page in PAGES)]:
            if file.is_file():
                self.client.log_artifact(run, str(file))
                if file.name in {"report.html", "report.json", "verdict.json"}:
                    self.client.log_artifact(self.parent, str(file))
        self.client.set_terminated(run, "FINISHED")

    def _curve(self, run: str, file: Path) -> None:
        """Every column of a loss.csv as a metric over its steps."""
        if not file.is_file():
            return
        import csv

        from mlflow.entities import Metric

        with file.open(encoding="utf-8", newline="") as stream:
            points = [
                Metric(key, float(value), 0, int(row["step"]))
                for row in csv.DictReader(stream)
                for key, value in row.items()
                if key.endswith("loss") and value
            ]
        self.client.log_batch(run, metrics=points[:1000])

    def finish(self, status: str) -> None:
        """Close the parent run."""
        if self.parent:
            self.client.set_terminated(self.parent, status)
