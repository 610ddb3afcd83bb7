"""The same run as a Prefect flow: a task for each step, watched and cancelled from Prefect's pages.

Prefect says how a run goes; whether a step is needed, the key says.  With PREFECT_API_URL set, that server has the run;
without, a temporary one (`flows/servers.py`) lasts as long as the command.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from flows.child import Listener, Progress, Stopped
from flows.plan import Step
from flows.runner import Outcome, Run, announcer
from flows.servers import choose_server, has_server
from flows.stage import pick_device
from tasks.shared.errors import StillroomError

if TYPE_CHECKING:
    from prefect.states import State

log = logging.getLogger("stillroom")
RETRY_AFTER_S = (10.0, 60.0)
GPU_TAG = "gpu"


def run_prefect(run: Run, overrides: Sequence[str] = ()) -> list[Outcome]:
    """All steps as tasks of one Prefect flow.  Raises what went wrong, as `Run.carry_out` does."""
    choose_server(run.session.runtime.folder)
    from prefect import flow, tags
    from prefect.events.worker import EventsWorker
    from prefect.task_runners import ThreadPoolTaskRunner

    recipe = run.session.plan.recipe
    failed: list[BaseException] = []

    def compress(recipe: str, overrides: list[str], steps: dict[str, str]) -> "State[Any]":
        return drive(run, failed)

    runner: Any = ThreadPoolTaskRunner(max_workers=len(run.session.plan.steps))
    decorated: Any = flow(
        name="compress",
        flow_run_name=flow_name(recipe, overrides),
        task_runner=runner,
        persist_result=False,
        validate_parameters=False,
    )(compress)
    steps = {step.name: step.target for step in run.session.plan.steps}
    try:
        with tags(f"recipe:{recipe}", "variant" if run.session.variant else "as written"):
            state = decorated(recipe, list(overrides), steps, return_state=True)
    finally:
        EventsWorker.drain_all(timeout=10)  # task states travel as events; without this the last ones are lost at exit
    if failed:
        raise failed[0]
    state.result()
    return [run.outcomes[step.name] for step in run.session.plan.steps]


def flow_name(recipe: str, overrides: Sequence[str]) -> str:
    """A flow run's name: the recipe, and what differs from it."""
    return f"{recipe} {' '.join(overrides)}".strip()[:200]


def drive(run: Run, failed: list[BaseException]) -> "State[Any]":
    """The body of a flow: every step a task.  What went wrong goes into `failed`, so that the command can say it its way."""
    from prefect import runtime
    from prefect.states import Cancelled, Completed, Failed

    from flows.prefect_runs import limit_gpus, present, watched

    if has_server() and any(on_gpu(run, step) for step in run.session.plan.steps):
        limit_gpus(GPU_TAG)
    if has_server():
        log.info("watch it at %s", runtime.flow_run.ui_url)
    announce = announcer(run)
    futures: dict[str, Any] = {}
    with present(run.session.runtime.folder, str(runtime.flow_run.id)), watched(run, str(runtime.flow_run.id)) as watch:
        try:
            run.carry_out(lambda step: submit(run, step, futures, announce))
        except (StillroomError, Stopped) as error:
            failed.append(error)
            if watch.cancelled:
                return Cancelled(message="cancelled; finished steps are kept")
            return Failed(message=str(error) or "interrupted")
        show_result(run)
    return Completed(message=f"{len(run.outcomes)} steps")


def on_gpu(run: Run, step: Step) -> bool:
    """Whether the step will hold a GPU."""
    return step.accelerated and pick_device(run.session.runtime.device) == "cuda"


def submit(run: Run, step: Step, futures: dict[str, Any], announce: Callable[[Step], None]) -> None:
    """Start a step's task, linked to its inputs' tasks in the run graph."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    def carry_out(name: str, technique: str, settings: dict[str, Any], inputs: dict[str, list[str]]) -> "State[Any]":
        announce(step)
        return attempt(run, step)

    def may_pass(*_: Any) -> bool:
        return bool(getattr(run.problems.get(step.name), "passing", False))

    decorated: Any = task(
        name=f"{step.stage}/{step.module.rpartition('.')[2]}",
        task_run_name=step.name,
        tags=[f"recipe:{run.session.plan.recipe}", step.stage, *([GPU_TAG] if on_gpu(run, step) else [])],
        cache_policy=NO_CACHE,  # Prefect's own cache cannot see that a file was changed or deleted
        persist_result=False,
        retries=step.retries,
        retry_delay_seconds=list(RETRY_AFTER_S),
        retry_condition_fn=may_pass,
    )(carry_out)
    inputs = {port: list(names) for port, names in step.inputs.items()}
    needs = [futures[name] for name in step.needs if name in futures]
    future = futures[step.name] = decorated.submit(step.name, step.target, step.settings(), inputs, wait_for=needs)
    future.add_done_callback(lambda _: run.over(step))


def attempt(run: Run, step: Step) -> "State[Any]":
    """Run a step and say how it ended as a state: with a message where a traceback would tell nobody anything."""
    from prefect import get_run_logger, runtime
    from prefect.states import Cancelled, Completed, Failed

    logger: Any = get_run_logger()
    reporter = ProgressArtifact(step.name)

    def line(name: str, text: str) -> None:
        run.board.line(name, text)
        logger.info(text)

    def progress(name: str, told: Progress) -> None:
        run.board.progress(name, told)
        reporter.show(told)

    ids = {"prefect.task_run_id": str(runtime.task_run.id), "prefect.flow_run_id": str(runtime.flow_run.id)}
    try:
        outcome = run.attempt(step, Listener(line, progress, run.stop), ids)
    except Stopped:
        return Cancelled(message="stopped with its flow")
    except StillroomError as error:
        return Failed(message=str(error))
    reporter.finish()
    step_artifact(run, outcome)
    logger.info("%s %s %s", outcome.status, step.name, outcome.place.folder)
    name = "Cached" if outcome.status == "cached" else "Completed"
    return Completed(name=name, message=f"key {outcome.manifest['key'][:12]}", data=outcome.manifest["key"])


class ProgressArtifact:
    """A progress bar on Prefect's pages that moves while a step works; only for a server that somebody may look at."""

    EVERY_S = 2.0

    def __init__(self, step: str) -> None:
        self.step = step
        self.id: Any = None
        self.told = 0.0
        self.wanted = has_server()

    def show(self, progress: Progress) -> None:
        """Move the bar, at most every two seconds."""
        import time

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
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if self.id is None:
            self.id = create_progress_artifact(percent, key=artifact_key(self.step, "progress"), description=text)
        else:
            update_progress_artifact(self.id, percent, description=text)


def artifact_key(*parts: str) -> str:
    """A key as Prefect allows them: lower-case letters, digits and dashes."""
    return "-".join(parts).replace("_", "-")


def step_artifact(run: Run, outcome: Outcome) -> None:
    """What a step made, as a table."""
    from prefect.artifacts import create_table_artifact

    manifest = outcome.manifest
    facts = {
        "status": outcome.status,
        "key": manifest["key"][:12],
        "folder": str(outcome.place.folder),
        "seconds made in": manifest["duration_s"],
        **manifest["metrics"],
    }
    create_table_artifact(
        key=artifact_key(run.session.plan.recipe, outcome.step),
        table=[{"what": key, "value": str(value)} for key, value in facts.items()],
    )


def show_result(run: Run) -> None:
    """The steps, the table of models, the verdict, the report and the MLflow run, as one markdown artifact and a link."""
    from prefect.artifacts import create_link_artifact, create_markdown_artifact

    from flows.show import result_markdown

    run.recorder.settle()  # so that the MLflow run has an id
    recipe = run.session.plan.recipe
    create_markdown_artifact(result_markdown(run), key=artifact_key(recipe, "result"), description=f"result of {recipe}")
    tracker = run.recorder.tracker
    if link := tracker.link:
        create_link_artifact(link, link_text="MLflow run", key=artifact_key(recipe, "mlflow"))
