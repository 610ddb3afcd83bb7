"""One run of a composed recipe, for the command line, a sweep's job or a deployment."""

import logging
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flows.orchestration.servers import Servers, has_server
from flows.planning.caveats import caveat_lines
from flows.planning.chats import chat_lines
from flows.planning.config import Settings
from flows.planning.plan import build_plan
from flows.planning.session import Session
from flows.planning.steps import Plan
from flows.tracking import MlflowTracker, NullTracker, Tracker
from flows.tracking.address import sqlite_file
from flows.versioning.params import tracked_params
from tasks.shared.errors import ErrorList, StillroomError
from tasks.shared.store.artifacts import SHORT, disk_errors
from tasks.shared.store.keys import PROJECT, digest_json

if TYPE_CHECKING:
    from flows.running.recorder import Recorder
    from flows.running.runner import Outcome, Run

log = logging.getLogger("stillroom")


@dataclass
class Execution:
    """A run and its outcomes."""

    run: "Run"
    outcomes: "list[Outcome]" = field(default_factory=list)


def execute(
    settings: Settings,
    servers: Servers,
    overrides: Sequence[str],
    *,
    variant: bool,
    tags: Mapping[str, str] | None = None,
) -> Execution:
    """Plan a recipe and run the steps that are not up to date.

    overrides: as typed; they name the run.
    variant: the run differs from the recipe as written, so it changes neither the recipe's folder nor params.yaml nor dvc.lock.
    tags: further MLflow tags of the run.
    Raises StillroomError, or Stopped after a cancellation.  Finished steps are kept.
    """
    from flows.planning.estimate import check_machine, estimate_plan
    from flows.planning.items import check_items
    from flows.planning.models import check_models
    from flows.planning.status import find_status

    plan = build_plan(settings.recipe)
    execution = Execution(open_run(settings, plan, variant))
    run = execution.run
    run.recorder = open_recorder(run, settings)
    if (done := run.find_all()) is not None:
        log.info("nothing to do: all %d steps are up to date", len(done))
        if not has_server():
            execution.outcomes = done
            return execution
        # Only the user's Prefect server shows the cached steps; MLflow already has their runs.
        run.recorder.tracker = NullTracker()
    else:
        check_models(plan, settings.runtime.folder)
    session = Session(plan, settings.runtime, run.session.variant)
    status = find_status(session)
    items = check_items(session, status, estimate_plan(plan, settings.runtime))
    if items.errors:
        raise ErrorList(items.errors)
    for warning in items.warnings:
        log.warning("%s", warning)
    for line in (*caveat_lines(plan), *chat_lines(plan)):
        log.info("%s", line)
    check_machine(plan, settings.runtime, [name for name, item in status.items() if item.done])
    run.tags = {**run_tags(settings, overrides), **(tags or {})}
    execution.outcomes = orchestrate(run, settings, servers, overrides)
    return execution


def open_run(settings: Settings, plan: Plan, variant: bool) -> "Run":
    """Open a run of this plan; update params.yaml and dvc.yaml for a tracked recipe.

    variant: the plan differs from the recipe as written.  With runtime.sync=false, every run of a tracked recipe is a variant.
    """
    from flows.running.runner import Run
    from flows.versioning.commit import obstacle, repair_after_kill
    from flows.versioning.files import update_recipe

    folder = settings.runtime.folder
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    known = folder == PROJECT and plan.recipe in tracked_params()
    variant = variant or (known and not settings.runtime.sync)
    tracked = known and settings.runtime.dvc and not variant
    if tracked and (reason := obstacle()):
        log.warning("DVC records nothing: %s", reason)
        tracked = False
    if tracked:
        repair_after_kill()
    if tracked and (update := update_recipe(plan)):
        log.log(logging.WARNING if update.changes else logging.INFO, "%s", update.describe())
    return Run(Session(plan, settings.runtime, variant), tracked)


def orchestrate(run: "Run", settings: Settings, servers: Servers, overrides: Sequence[str]) -> "list[Outcome]":
    """Run the missing steps with the configured orchestrator and tracker."""
    from flows.orchestration.flow import run_with_prefect
    from flows.running.runner import run_in_threads

    status = "KILLED"
    try:
        if settings.runtime.orchestrator == "prefect":
            named = [item for item in overrides if not item.lstrip("+").startswith("recipe=")]
            outcomes = run_with_prefect(run, servers, named)
        else:
            outcomes = run_in_threads(run)
        status = "FINISHED"
    except StillroomError:
        status = "FAILED"
        raise
    finally:
        run.recorder.finish(status)
    return outcomes


def open_recorder(run: "Run", settings: Settings) -> "Recorder":
    """Open the run's recorder.  Variants have notes of their own, since their records differ."""
    from flows.running.recorder import Recorder

    tracker = open_tracker(settings)
    recorded = [tracker.address, run.session.plan.recipe, run.session.variant]
    notes = run.session.store.home / ".tracked" / digest_json(recorded)[:SHORT]
    database = sqlite_file(tracker.address)
    if database is not None and not database.is_file():
        shutil.rmtree(notes, ignore_errors=True)  # the database was deleted, and its records with it
    return Recorder(tracker, notes if tracker.address else None)


def open_tracker(settings: Settings) -> Tracker:
    """Open the tracker that the configuration names."""
    if settings.tracking.kind == "none":
        return NullTracker()
    return MlflowTracker(settings.tracking.uri, settings.runtime.folder, str(settings.recipe["name"]))


def run_tags(settings: Settings, overrides: Sequence[str]) -> dict[str, str]:
    """MLflow tags that identify a run."""
    found = {
        "recipe": str(settings.recipe["name"]),
        "overrides": " ".join(overrides),
        "config": digest_json(settings.recipe),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": "flows/compress.py",
    }
    if commit := git("rev-parse", "HEAD"):
        found |= {
            "git.commit": commit,
            "git.dirty": str(bool(git("status", "--porcelain", "--untracked-files=no"))),
            "mlflow.source.git.commit": commit,  # the tag by which MLflow's pages link to the source
        }
    return found


def git(*arguments: str) -> str:
    """Output of a git command in the project; empty without git or a repository."""
    program = shutil.which("git")
    if program is None:
        return ""
    done = subprocess.run(
        [program, *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
        env=dict(os.environ),
    )
    return done.stdout.strip() if done.returncode == 0 else ""
