"""Artifacts on Prefect's pages: progress, a table for each step, the result, links."""

import logging
import time
from contextlib import suppress
from io import StringIO
from typing import Any

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from flows.console.model_table import ModelTable, model_table
from flows.orchestration.runs import UNREACHABLE
from flows.orchestration.servers import has_server
from flows.running.child import Progress
from flows.running.runner import Outcome, Run
from tasks.report.words.result import result_of
from tasks.shared.technique import Kind

log = logging.getLogger("stillroom")


class ProgressArtifact:
    """Progress bar on the user's Prefect server; a temporary server gets none."""

    EVERY_S = 2.0
    PAUSE_S = 60.0

    def __init__(self, recipe: str, step: str) -> None:
        self.recipe, self.step = recipe, step
        self.id: Any = None
        self.updated = 0.0
        self.wanted = has_server()

    def show(self, progress: Progress) -> None:
        """Update the bar, at most every two seconds."""
        if not self.wanted or time.monotonic() - self.updated < self.EVERY_S:
            return
        self.updated = time.monotonic()
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
            self.updated += self.PAUSE_S  # a failed request blocks the thread that waits for the step


def artifact_key(*parts: str) -> str:
    """Return a key in Prefect's form: lower-case letters, digits and dashes."""
    return "-".join(parts).replace("_", "-").lower()


def show_step(run: Run, outcome: Outcome) -> None:
    """Show the facts of a finished step as a table."""
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
        description=f"{outcome.step}: a {manifest['kind']}, {outcome.status}",
    )


def publish_result(run: Run) -> None:
    """Show the result of a run as Markdown, with links to the report and the MLflow run."""
    run.recorder.settle()  # so that the MLflow run has an id
    recipe = run.session.plan.recipe
    create_markdown_artifact(
        result_markdown(run), key=artifact_key(recipe, "result"), description=f"Result of {recipe}"
    )
    with suppress(StopIteration):
        step = next(step for step in run.session.plan.steps if step.kind is Kind.REPORT)
        page = run.outcomes[step.name].place.out / "report.html"
        create_link_artifact(
            page.as_uri(), link_text="report", key=artifact_key(recipe, "report-page"), description=f"report: {page}"
        )
    if link := run.recorder.tracker.link:
        create_link_artifact(
            link, link_text="MLflow run", key=artifact_key(recipe, "mlflow"), description=f"MLflow run of {recipe}"
        )


def result_markdown(run: Run) -> str:
    """Decisions, models, steps and addresses of a finished run, as Markdown."""
    from flows.console.show import step_table, where_to_look
    from tasks.shared.formats.verdict import read_verdict

    outcomes = [run.outcomes[step.name] for step in run.session.plan.steps]
    places = {outcome.step: outcome.place for outcome in outcomes}
    parts = []
    for step in run.session.plan.steps:
        if step.kind is Kind.VERDICT:
            verdict = read_verdict(places[step.name].out / "verdict.json")
            result = result_of(verdict)
            parts += [f"**{result.line}**", *(f"- {step}" for step in result.further), markdown(model_table(verdict))]
    parts.append(markdown(step_table(outcomes)))
    lines = [f"- {label}: `{address}`" for label, address in where_to_look(run, places)]
    if run.recorder.tracker.run_id:
        lines.append(f"- MLflow run: `{run.recorder.tracker.run_id}`")
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def markdown(table: Table) -> str:
    """Render a table of the command line as Markdown."""
    with StringIO() as text:
        console = Console(file=text, width=1000, force_terminal=False)  # no line may wrap
        if isinstance(table, ModelTable):
            table = table.spaced
        caption, table.caption = table.caption, None  # a line directly below would be one more row
        table.title, table.box, table.padding, table.pad_edge = None, MARKDOWN, (0, 1), True
        console.print(table)
        return "\n\n".join([text.getvalue().strip(), *([str(caption)] if caption else [])])
