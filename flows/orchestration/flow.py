"""A run as a Prefect flow: a task for each step, which Prefect's pages show and can cancel.

Keys, not Prefect, decide which steps run.  The server at PREFECT_API_URL shows the run; without one, a temporary
server (`flows/orchestration/temporary_server.py`) lasts as long as the command.  Steps go on if the server dies.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from flows.orchestration.servers import Servers, has_server
from flows.planning.steps import Step
from flows.running.child import Listener, Progress, Stopped
from flows.running.runner import Outcome, Run, announcer
from tasks.shared.errors import MachineError, StillroomError

if TYPE_CHECKING:
    from prefect.states import State

log = logging.getLogger("stillroom")
AWAIT_RETRY_S = 2
"""Seconds that Prefect waits before a retry.  This wait cannot be interrupted; the rest of the pause is ours and can be."""
WAIT_MORE_S = (0, 8, 58)
GPU = "gpu"
"""Tag of the steps that hold a GPU, and name of the server's limit on them."""


def run_with_prefect(run: Run, servers: Servers, overrides: Sequence[str] = ()) -> list[Outcome]:
    """Run all steps as tasks of one Prefect flow.  Raises the errors of `Run.schedule`."""
    servers.choose(run.session.runtime.folder)
    from prefect.context import FlowRunContext

    if FlowRunContext.get():  # a deployment's run already has a flow
        return drive(run, servers)
    failed: list[BaseException] = []
    try:
        start_flow(run, servers, overrides, failed)
    except unreachable() as error:
        if not failed and len(run.outcomes) < len(run.session.plan.steps):
            raise lost_server(error) from error
        log.warning("Prefect's server went away before the end of the run; its pages of this run are incomplete")
    if failed:
        raise failed[0]
    return [run.outcomes[step.name] for step in run.session.plan.steps]


def start_flow(run: Run, servers: Servers, overrides: Sequence[str], failed: list[BaseException]) -> None:
    """Run the flow to its end.

    failed: receives errors for the user; others are raised.
    """
    from prefect import flow, tags
    from prefect.events.worker import EventsWorker
    from prefect.task_runners import ThreadPoolTaskRunner

    def compress(recipe: str, overrides: list[str], steps: dict[str, str]) -> "State[Any]":
        return as_state(lambda: drive(run, servers), failed)

    plan = run.session.plan
    runner: Any = ThreadPoolTaskRunner(max_workers=len(plan.steps))
    decorated: Any = flow(
        name="compress",
        description="A recipe: every step that has no artifact for its key.",
        flow_run_name=flow_name(plan.recipe, overrides),
        task_runner=runner,
        persist_result=False,
        validate_parameters=False,
    )(compress)
    steps = {step.name: step.target for step in plan.steps}
    try:
        with tags(*flow_tags(run)):
            decorated(plan.recipe, list(overrides), steps, return_state=True)
    finally:
        # Task states are sent as events; without this, the last ones are lost at exit.
        EventsWorker.drain_all(timeout=10)


def flow_name(recipe: str, overrides: Sequence[str]) -> str:
    """Name of a flow run: the recipe, and the overrides that make it a variant."""
    from flows.planning.config import is_variant

    return " ".join([recipe, *(item for item in overrides if is_variant([item]))])[:200]


def flow_tags(run: Run) -> list[str]:
    """Tags to find flow runs by."""
    return [f"recipe:{run.session.plan.recipe}", "variant" if run.session.variant else "as written"]


def as_state(work: Callable[[], list[Outcome]], failed: list[BaseException]) -> "State[Any]":
    """Do a flow's work and return its result as a Prefect state; errors become a message.

    failed: receives the error as well, for the command's own message.
    """
    from prefect.states import Cancelled, Completed, Failed

    try:
        outcomes = work()
    except Stopped as error:
        failed.append(error)
        return Cancelled(message="canceled; finished steps are kept")
    except StillroomError as error:
        failed.append(error)
        return Failed(message=str(error))
    made = sum(outcome.status == "made" for outcome in outcomes)
    return Completed(message=f"{made} steps made, {len(outcomes) - made} found")


def drive(run: Run, servers: Servers) -> list[Outcome]:
    """Run every step as a task; this is the body of the flow."""
    from prefect import runtime
    from prefect.utilities.urls import url_for

    from flows.orchestration.pages import publish_result
    from flows.orchestration.runs import limit_gpus, present, settle, watched

    # `runtime.flow_run.ui_url` links to Prefect's former pages (3.8).
    page = str(url_for("flow-run", obj_id=runtime.flow_run.id))
    if has_server() and any(on_gpu(run, step) for step in run.session.plan.steps):
        limit_gpus(GPU)
    if has_server():
        log.info("watch it at %s", page)
    announce = announcer(run)
    futures: dict[str, Any] = {}
    flow_run = str(runtime.flow_run.id)
    # Until Prefect has recorded the run's end.
    servers.until_end.enter_context(present(run.session.runtime.folder, flow_run))
    if not has_server():
        servers.until_end.callback(settle, flow_run, lambda: len(run.outcomes.keys() | run.problems.keys()))
    with watched(run, flow_run):
        ids = {"prefect.flow_run_id": flow_run, "prefect.url": page}
        outcomes = run.schedule(lambda step: submit(run, step, futures, announce), ids)
        with suppress(*unreachable()):
            publish_result(run)
    return outcomes


def on_gpu(run: Run, step: Step) -> bool:
    """Return True if the step will hold a GPU."""
    return run.session.device(step) == "cuda"


def submit(run: Run, step: Step, futures: dict[str, Any], announce: Callable[[Step], None]) -> None:
    """Submit a step's task, linked to its inputs' tasks in the run graph."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    def work(name: str, technique: str, settings: dict[str, Any], inputs: dict[str, list[str]]) -> "State[Any]":
        announce(step)
        return attempt_as_state(run, step)

    def may_pass(*_: Any) -> bool:
        return not run.stop.is_set() and bool(getattr(run.problems.get(step.name), "retryable", False))

    def over(_: Any) -> None:
        if step.name not in run.outcomes and step.name not in run.problems and not run.stop.is_set():
            go_on_unwatched(run, step)
        run.report_end(step)

    decorated: Any = task(
        name=f"{step.stage}/{step.module.rpartition('.')[2]}",
        task_run_name=step.name,
        tags=[f"recipe:{run.session.plan.recipe}", step.stage, *([GPU] if on_gpu(run, step) else [])],
        cache_policy=NO_CACHE,  # Prefect's own cache cannot see that a file was changed or deleted
        persist_result=False,
        retries=step.retries,
        retry_delay_seconds=AWAIT_RETRY_S,
        retry_condition_fn=may_pass,
    )(work)
    inputs = {port: list(names) for port, names in step.inputs.items()}
    needs = [futures[name] for name in step.needs if name in futures]
    future = futures[step.name] = decorated.submit(step.name, step.target, step.settings(), inputs, wait_for=needs)
    future.add_done_callback(over)


def go_on_unwatched(run: Run, step: Step) -> None:
    """Run a step whose task Prefect could not start because its server went away."""
    log.warning("Prefect's server cannot be reached; %s goes on without it", step.name)
    with suppress(StillroomError, Stopped):  # kept in run.problems
        run.attempt(step, Listener(run.board.line, run.board.progress, run.stop))


def attempt_as_state(run: Run, step: Step) -> "State[Any]":
    """Attempt a step and return the result as a Prefect state."""
    from prefect import get_run_logger, runtime
    from prefect.states import Cancelled, Completed, Failed

    from flows.orchestration.pages import ProgressArtifact, show_step
    from flows.orchestration.runs import gpu_slot

    logger: Any = get_run_logger()
    reporter = ProgressArtifact(run.session.plan.recipe, step.name)

    def line(name: str, text: str) -> None:
        run.board.line(name, text)
        logger.info(text)

    def progress(name: str, report: Progress) -> None:
        run.board.progress(name, report)
        reporter.show(report)

    ids = {"prefect.task_run_id": str(runtime.task_run.id), "prefect.flow_run_id": str(runtime.flow_run.id)}
    try:
        wait_before(run, int(runtime.task_run.run_count or 1))
        with gpu_slot(GPU if on_gpu(run, step) else "", run.stop):
            outcome = run.attempt(step, Listener(line, progress, run.stop), ids)
    except Stopped:
        return Cancelled(message="stopped with its flow; no half artifact is left")
    except StillroomError as error:
        return Failed(message=str(error))
    reporter.finish()
    with suppress(*unreachable()):
        show_step(run, outcome)
    logger.info("%s %s %s", outcome.status, step.name, outcome.place.folder)
    name = "Cached" if outcome.status == "cached" else "Completed"
    return Completed(name=name, message=f"key {outcome.manifest['key'][:12]}", data=outcome.manifest["key"])


def wait_before(run: Run, attempt: int) -> None:
    """Wait longer before each further attempt, so that a server can recover.  Raises Stopped."""
    if attempt > 1 and run.stop.wait(WAIT_MORE_S[min(attempt - 2, len(WAIT_MORE_S) - 1)]):
        raise Stopped


def unreachable() -> tuple[type[Exception], ...]:
    """Exceptions that Prefect's client raises if the server is gone or cannot answer."""
    from flows.orchestration.runs import UNREACHABLE

    return UNREACHABLE


def lost_server(error: Exception) -> StillroomError:
    """Return the error for a run that could not go on without the server."""
    return MachineError(
        "Prefect's server",
        f"it went away ({type(error).__name__})",
        "a server that answers",
        "finished steps are kept; run the same command again, with runtime.orchestrator=none if need be",
    )
