"""What Prefect's pages show of a run besides states and logs: progress, a table for each step, the result, links."""

import logging
import time
from contextlib import suppress
from typing import Any

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.child import Progress
from flows.prefect_runs import UNREACHABLE
from flows.runner import Outcome, Run
from flows.servers import has_server

log = logging.getLogger("stillroom")


class ProgressArtifact:
    """A progress bar that moves while a step works; only for a server that somebody may look at."""

    EVERY_S = 2.0
    PAUSE_S = 60.0

    def __init__(self, recipe: str, step: str) -> None:
        self.recipe, self.step = recipe, step
        self.id: Any = None
        self.told = 0.0
        self.wanted = has_server()

    def show(self, progress: Progress) -> None:
        """Move the bar, at most every two seconds."""
        if not self.wanted or time.monotonic() - self.told < self.EVERY_S:
            return
        self.told = time.monotonic()
        percent = 100.0 * progress.done / max(1, progress.total)
        text = f"{progress.description}: {progress.done} of {progress.total} {progress.note}".strip()
        self._write(min(percent, 100.0), text)

    def finish(self) -> None:
        """Fill the bar, if there is one."""
        if self.id is not None:
            self._write(100.0, "done")

    def _write(self, percent: float, text: str) -> None:
        words = f"{self.step}: {text}"
        try:
            if self.id is None:
                key = artifact_key(self.recipe, self.step, "progress")
                self.id = create_progress_artifact(percent, key=key, description=words)
            else:
                update_progress_artifact(self.id, percent, description=words)
        except UNREACHABLE:
            self.told += self.PAUSE_S  # a try holds up the thread that waits for the step


def artifact_key(*parts: str) -> str:
    """A key as Prefect allows them: lower-case letters, digits and dashes."""
    return "-".join(parts).replace("_", "-").lower()


def show_step(run: Run, outcome: Outcome) -> None:
    """What a step made, as a table."""
    manifest = outcome.manifest
    facts = {
        "status": outcome.status,
        "technique": manifest["technique"],
        "key": manifest["key"][:12],
        "folder": str(outcome.place.folder),
        "seconds": manifest["duration_s"],
        "memory, MB": round(manifest["peak_memory_bytes"] / 1e6),
        **manifest["metrics"],
    }
    create_table_artifact(
        key=artifact_key(run.session.plan.recipe, outcome.step),
        table=[{"what": key, "value": str(value)} for key, value in facts.items()],
        description=f"{outcome.step}: {outcome.status}, {manifest['kind']}",
    )


def show_result(run: Run) -> None:
    """The steps, the table of models, the verdict and where everything is as Markdown; links to the report and the MLflow run."""
    from flows.show import result_markdown

    run.recorder.settle()  # so that the MLflow run has an id
    recipe = run.session.plan.recipe
    create_markdown_artifact(result_markdown(run), key=artifact_key(recipe, "result"), description=f"result of {recipe}")
    with suppress(StopIteration):
        step = next(step for step in run.session.plan.steps if step.stage == "report")
        page = run.outcomes[step.name].place.out / "report.html"
        create_link_artifact(
            page.as_uri(), link_text="report", key=artifact_key(recipe, "report-page"), description=f"report: {page}"
        )
    if link := run.recorder.tracker.link:
        create_link_artifact(
            link, link_text="MLflow run", key=artifact_key(recipe, "mlflow"), description=f"MLflow run of {recipe}"
        )
