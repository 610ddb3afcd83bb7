"""Execution of a plan: each step is found or made in a child process, then recorded."""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import psutil
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from flows.planning.estimate import estimate_plan
from flows.planning.session import Session
from flows.planning.steps import Step
from flows.running.board import Board
from flows.running.child import Listener, StepFailed, Stopped, run_child
from flows.running.fork_template import Template
from flows.running.recorder import Recorder
from flows.running.schedule import Budget, Ended, run_graph
from flows.tracking import NullTracker, StepRecord
from flows.versioning.lockfile import recorded
from flows.versioning.pipeline import stage_name
from tasks.shared.errors import ErrorList, StillroomError
from tasks.shared.store.artifacts import Place, disk_errors

log = logging.getLogger("stillroom")


@dataclass(frozen=True)
class Outcome:
    """Result of one step."""

    step: str
    place: Place
    status: Literal["made", "cached"]

    @property
    def manifest(self) -> dict[str, Any]:
        """The step's manifest."""
        return self.place.read_manifest() or {}


@dataclass
class Run:
    """One execution of a recipe: its session, recorder and progress."""

    session: Session
    tracked: bool
    """The recipe is in params.yaml and runs as written, so DVC records its steps."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """MLflow tags that identify the run."""
    recorder: Recorder = field(default_factory=lambda: Recorder(NullTracker()))
    board: Board = field(default_factory=Board)
    stop: threading.Event = field(default_factory=threading.Event)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    problems: dict[str, BaseException] = field(default_factory=dict)
    ended: "queue.Queue[Ended]" = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        """Prepare the template process, which starts when the first step has to be made."""
        self.template = Template(self.session.runtime.template)

    def find_all(self) -> list[Outcome] | None:
        """Return every step's outcome if nothing has to run or be recorded, else None.

        Imports no large library.
        """
        outcomes: list[Outcome] = []
        for step in self.session.plan.steps:
            with disk_errors(self.session.runtime.folder):
                key = self.session.key(step)
                place = self.session.find(step, key)
            if place is None or not self.recorder.has_recorded(key):
                return None
            if self.tracked and not recorded(stage_name(self.session.plan.recipe, step.name), key):
                return None
            outcomes.append(Outcome(step.name, place, "cached"))
        self.session.store.digests.save()
        return outcomes

    def obtain(self, step: Step, listener: Listener | None = None, ids: Mapping[str, str] | None = None) -> Outcome:
        """Find or make one step, then record it.

        ids: further MLflow tags of the step's run.
        Raises StepFailed, another StillroomError, or Stopped.
        """
        with disk_errors(self.session.runtime.folder):
            key = self.session.key(step)
            place = self.session.find(step, key)
            made = False
            if place is None:
                if reason := self.session.why(step, key):
                    log.info("%s is made again: %s", step.name, reason)
                made = self._make(step, key, listener or Listener(self.board.line, self.board.progress, self.stop))
                place = self.session.find(step, key)
            if place is None:
                raise StepFailed(
                    step.name, "it ended without an artifact for its key; its files may have been edited while it ran"
                )
            self.session.store.digests.save()
        outcome = self.outcomes[step.name] = Outcome(step.name, place, "made" if made else "cached")
        inputs = self.session.inputs(step).ports
        record = StepRecord(
            step.name, step.kind, outcome.manifest, place.folder, made, inputs, ids or {}, self.session.variant
        )
        stage = stage_name(self.session.plan.recipe, step.name)
        self.recorder.step(record, stage if self.tracked and not recorded(stage, key) else None)
        return outcome

    def _make(self, step: Step, key: str, listener: Listener) -> bool:
        """Run the step's process; return False if another run made the artifact in the meantime."""
        self.session.store.digests.save()  # saves the child from reading the same files again
        self.board.begin(step.name)
        try:
            return run_child(self.session, step, listener, self.template)
        except StepFailed as error:
            self.session.store.digests.load()
            if self.session.find(step, key) is None:
                raise
            log.warning("%s made its artifact and then failed: %s", step.name, error)
            return True
        finally:
            self.session.store.digests.load()
            self.board.end(step.name)

    def attempt(self, step: Step, listener: Listener | None = None, ids: Mapping[str, str] | None = None) -> Outcome:
        """Call `obtain`; keep its error in `problems` until another attempt succeeds."""
        try:
            outcome = self.obtain(step, listener, ids)
        except BaseException as error:
            self.problems[step.name] = error
            raise
        self.problems.pop(step.name, None)
        return outcome

    def report_end(self, step: Step) -> None:
        """Tell the schedule that a step will not be attempted again."""
        self.ended.put(Ended(step.name, step.name in self.outcomes, stop=self.stop.is_set()))

    def schedule(self, start: Callable[[Step], None], ids: Mapping[str, str] | None = None) -> list[Outcome]:
        """Start each step once its inputs exist, and return all outcomes.

        start: begins a step in another thread, which calls `report_end` when the step ends.
        ids: further MLflow tags of the run.
        Raises one StillroomError, an ErrorList of several, or Stopped.
        """
        plan, runtime = self.session.plan, self.session.runtime
        self.recorder.start(plan.recipe, {**self.tags, **(ids or {})})
        memory = {name: item.memory_bytes for name, item in estimate_plan(plan, runtime).items()}
        budget = Budget(runtime.steps_at_once, runtime.memory_gb * 1e9 or 0.8 * psutil.virtual_memory().total)
        with self.board:
            try:
                left = run_graph(plan.steps, memory, budget, start, self.ended)
            except BaseException:
                self.stop.set()  # the steps' threads see it and end their processes
                raise
            finally:
                self.template.close()
        self._complain(left)
        return [self.outcomes[step.name] for step in plan.steps]

    def _complain(self, left: list[str]) -> None:
        problems = list(self.problems.values())
        if unforeseen := [error for error in problems if not isinstance(error, StillroomError | Stopped)]:
            raise unforeseen[0]
        if self.stop.is_set():
            raise Stopped
        known = [error for error in problems if isinstance(error, StillroomError)]
        if known:
            if left:
                log.info("not started, since an input is missing: %s", ", ".join(left))
            raise known[0] if len(known) == 1 else ErrorList(known)


def announcer(run: Run) -> Callable[[Step], None]:
    """Return a function that prints a line when a step begins."""
    numbers = {step.name: index for index, step in enumerate(run.session.plan.steps, start=1)}

    def announce(step: Step) -> None:
        technique = step.target.removeprefix("tasks.").rpartition(".")[0].replace(".", "/")
        log.info("[%d/%d] %s (%s)", numbers[step.name], len(numbers), step.name, technique)

    return announce


def run_in_threads(run: Run) -> list[Outcome]:
    """Run all steps without Prefect."""
    announce = announcer(run)

    def pause(seconds: float) -> None:
        run.stop.wait(seconds)

    def work(step: Step) -> None:
        announce(step)
        again = Retrying(
            stop=stop_after_attempt(step.retries + 1),
            wait=wait_exponential(max=60),
            retry=retry_if_exception(lambda error: getattr(error, "retryable", False)),
            reraise=True,
            sleep=pause,
            before_sleep=lambda state: log.info("%s failed; trying again: %s", step.name, _error(state)),
        )
        try:
            again(run.attempt, step)
        finally:
            run.report_end(step)

    with ThreadPoolExecutor(len(run.session.plan.steps), thread_name_prefix="step") as pool:

        def start(step: Step) -> None:
            pool.submit(work, step)

        return run.schedule(start)


def _error(state: Any) -> str:
    return str(state.outcome.exception()).splitlines()[0]
