"""Carry out a plan: every step in a child process, under Prefect or in a plain loop, recorded in MLflow and DVC."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from flows.plan import Step
from flows.stage import RESULT, Session, write_job
from flows.sync import record
from tasks.shared.artifacts import Place, disk_errors
from tasks.shared.errors import StillroomError
from tasks.shared.keys import PROJECT
from tasks.shared.tracking import StepRecord, Tracker

log = logging.getLogger("stillroom")
GRACE_S = 15
"""How long a step may tidy up after Ctrl-C before it is killed."""


class StepFailed(StillroomError):
    """A step ended without an artifact; the message is the step's own."""

    def __init__(
        self, step: str, message: str, hint: str = "finished steps are kept; run the same command again"
    ) -> None:
        super().__init__(f"step {step}", message, fix=hint)


@dataclass(frozen=True)
class Outcome:
    """How one step ended."""

    step: str
    place: Place
    status: Literal["made", "cached"]

    @property
    def manifest(self) -> dict[str, Any]:
        """The step's manifest."""
        return self.place.read_manifest() or {}


@dataclass
class Run:
    """One execution of a recipe: its session, the recipe it was built from, and where it is recorded."""

    session: Session
    recipe: Mapping[str, Any]
    tracker: Tracker
    tracked: bool
    """The recipe stands in params.yaml, so DVC records its steps."""

    def cached(self) -> list[Outcome] | None:
        """Every step's outcome if nothing has to run, else None; touches no server and imports nothing heavy."""
        outcomes = []
        for step in self.session.plan.steps:
            place = self.session.reuse(step, self.session.key(step))
            if place is None:
                return None
            outcomes.append(Outcome(step.name, place, "cached"))
        self.session.store.digests.save()
        return outcomes

    def step(self, step: Step) -> Outcome:
        """Find or make one step, then record it."""
        with disk_errors(self.session.runtime.folder):
            key = self.session.key(step)
            place = self.session.reuse(step, key)
            status: Literal["made", "cached"] = "cached" if place else "made"
            if place is None:
                if fault := self.session.store.fault(self.session.target(step, key), key):
                    log.info("%s is made again: %s", step.name, fault)
                self._run_child(step)
                place = self.session.reuse(step, key)
            if place is None:
                raise StepFailed(step.name, "it ended without an artifact for its key; were files edited while it ran?")
            self.session.store.digests.save()
        outcome = Outcome(step.name, place, status)
        inputs = self.session.inputs(step).ports
        self.tracker.step(StepRecord(step.name, step.kind, outcome.manifest, place.folder, status == "made", inputs))
        if self.tracked and not self.session.variant and self.session.runtime.dvc:
            record(self.session.plan.recipe, step.name)
        return outcome

    def _run_child(self, step: Step) -> None:
        """Run the step as a process of its own group, and take the whole group down with us."""
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
        }
        with TemporaryDirectory(prefix="stillroom-") as folder:
            job = write_job(self.session, self.recipe, Path(folder))
            command = [sys.executable, "-m", "flows.stage", self.session.plan.recipe, step.name, "--job", str(job)]
            child = subprocess.Popen(command, start_new_session=True, env=environment)
            try:
                code = child.wait()
            except BaseException:
                stop_group(child)
                raise
            error = Path(folder) / RESULT
            message = json.loads(error.read_text("utf-8"))["error"] if error.is_file() else None
        if code == 0:
            return
        if code == 2 and message is not None:
            raise StepFailed(step.name, message)
        if code == -signal.SIGKILL:
            raise StepFailed(
                step.name,
                "it was killed (signal 9)",
                "if memory ran out, use smaller batches or a smaller model; finished steps are kept",
            )
        if code in {130, -signal.SIGINT, -signal.SIGTERM}:
            raise KeyboardInterrupt
        raise StepFailed(step.name, f"it ended with code {code}; its traceback is above")


def stop_group(child: "subprocess.Popen[bytes]") -> None:
    """Interrupt a child's process group, wait a little, then kill what is left of it."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def run_plain(run: Run, announce: Callable[[Step], None]) -> list[Outcome]:
    """All steps in order, no Prefect."""
    outcomes = []
    for step in run.session.plan.steps:
        announce(step)
        outcomes.append(run.step(step))
    return outcomes


def run_prefect(run: Run, announce: Callable[[Step], None]) -> list[Outcome]:
    """All steps in order as tasks of one Prefect flow, with or without a server."""
    prepare_prefect(run.session.runtime.folder)
    from prefect import flow, get_run_logger, task
    from prefect.artifacts import create_table_artifact
    from prefect.cache_policies import NO_CACHE
    from prefect.events.worker import EventsWorker
    from prefect.states import Completed, Failed

    recipe = run.session.plan.recipe
    outcomes: dict[str, Outcome] = {}
    problems: list[StillroomError] = []

    def carry_out(step_name: str, technique: str, settings: dict[str, Any], needs: list[str]) -> Any:
        step = run.session.plan.step(step_name)
        announce(step)
        try:
            outcome = outcomes[step_name] = run.step(step)
        except StillroomError as error:  # a state with one message, not a traceback
            problems.append(error)
            return Failed(message=str(error))
        manifest = outcome.manifest
        facts = {
            "status": outcome.status,
            "key": manifest["key"][:12],
            "folder": str(outcome.place.folder),
            "seconds made in": manifest["duration_s"],
            **manifest["metrics"],
        }
        create_table_artifact(
            key=f"{recipe}-{step_name}".replace("_", "-"),
            table=[{"what": key, "value": str(value)} for key, value in facts.items()],
        )
        get_run_logger().info("%s %s %s", outcome.status, step_name, outcome.place.folder)
        name = "Cached" if outcome.status == "cached" else "Completed"
        return Completed(name=name, message=f"key {manifest['key'][:12]}", data=manifest["key"])

    @flow(name="compress", flow_run_name=recipe, persist_result=False, log_prints=False)
    def compress(name: str, steps: dict[str, Any]) -> Any:
        for step in run.session.plan.steps:
            options: Any = {"name": step.stage, "task_run_name": step.name, "tags": [f"recipe:{name}", step.stage]}
            runner: Any = task(cache_policy=NO_CACHE, persist_result=False, **options)(carry_out)
            state = runner(step.name, step.target, step.settings(), list(step.needs), return_state=True)
            if problems:
                return Failed(message=str(problems[0]))
            state.result()  # anything unforeseen is raised here
        return Completed(message=f"{len(outcomes)} steps")

    try:
        state: Any = compress(recipe, {step.name: step.target for step in run.session.plan.steps}, return_state=True)
    finally:
        EventsWorker.drain_all(timeout=10)  # task states travel as events; without this the last ones are lost at exit
        stop_ephemeral_servers()
    if problems:
        raise problems[0]
    state.result()
    return [outcomes[step.name] for step in run.session.plan.steps]


def prepare_prefect(root: Path) -> None:
    """Settings that Prefect reads when it is imported: offline, patient, its database beside our artifacts."""
    url = os.environ.get("PREFECT_API_URL", "")
    if url and not server_answers(url):
        log.warning(
            "PREFECT_API_URL=%s does not answer; this run uses a temporary server and will not be in that UI", url
        )
        del os.environ["PREFECT_API_URL"]
    for name, value in {
        "PREFECT_HOME": str(root / ".prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_LOGGING_LEVEL": "INFO" if os.environ.get("PREFECT_API_URL") else "WARNING",
    }.items():
        os.environ.setdefault(name, value)


def server_answers(url: str) -> bool:
    """Whether a Prefect API answers at this URL."""
    import httpx

    try:
        return httpx.get(f"{url.rstrip('/')}/health", timeout=5).is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def stop_ephemeral_servers() -> None:
    """Stop Prefect's temporary server, which outlives a process that ends by a signal."""
    from prefect.server.api.server import SubprocessASGIServer

    for server in list(SubprocessASGIServer._instances.values()):  # no public way to list them (3.8)
        server.stop()


def elapsed(started: float) -> str:
    """Minutes and seconds since a monotonic time."""
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
