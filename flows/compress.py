"""Compress a model by a recipe.

python -m flows.compress +recipe=support_bot
python -m flows.compress +recipe=support_bot dry_run=true        the plan and its cost
python -m flows.compress +recipe=support_bot dry_run=graph       also the graph as mermaid text
python -m flows.compress +recipe=support_bot steps.slim.ratio=0.3
python -m flows.compress +recipe=support_bot --multirun steps.slim.ratio=0.2,0.3 seed=0,1
"""

import logging
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from flows.console import exit_codes
from flows.console.arguments import flags_first
from flows.console.terminal import prepare_terminal
from flows.orchestration.servers import Servers
from flows.planning.config import CONF
from tasks.shared.errors import StillroomError
from tasks.shared.technique import Kind

if TYPE_CHECKING:
    from flows.orchestration.execute import Execution
    from flows.sweeps.results import Job

log = logging.getLogger("stillroom")


def run_job(config: DictConfig, jobs: "list[Job]", servers: Servers) -> None:
    """Run one composed job and add it to `jobs`, with its error if it fails.

    The other jobs of a sweep go on.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from flows.running.child import Stopped
    from flows.sweeps.results import Job, sweep_name

    overrides = list(HydraConfig.get().overrides.task)
    if sweep := HydraConfig.get().mode == RunMode.MULTIRUN:
        log.info("job %d: %s", len(jobs), " ".join(overrides))
    job = Job(overrides)
    jobs.append(job)
    started = time.monotonic()
    try:
        compress(config, job, servers, sweep_name(sys.argv[1:]) if sweep else "")
    except StillroomError as error:
        log.error("%s", error)
        job.code, job.error = exit_codes.USER, error
    except Stopped as error:  # canceled on Prefect's pages; Ctrl-C is a KeyboardInterrupt and ends the whole command
        if not sweep:
            raise KeyboardInterrupt from None
        log.error("canceled; finished steps are kept")
        job.code, job.error = exit_codes.INTERRUPTED, error
    job.seconds = time.monotonic() - started


def compress(config: DictConfig, job: "Job", servers: Servers, sweep: str) -> None:
    """Run one composed recipe and show the result.

    sweep: name of the job's sweep; empty without a sweep.  A job of a sweep prints nothing; `job` keeps its result for the end.
    Raises StillroomError, Stopped or KeyboardInterrupt.
    """
    from flows.console.show import show_plan, show_result
    from flows.orchestration.execute import execute
    from flows.planning.config import check_name, is_variant, read_settings
    from flows.planning.models import check_models
    from flows.planning.plan import build_plan
    from flows.sweeps.results import TAG

    started = time.monotonic()
    settings = read_settings(config)
    check_name(str(settings.recipe["name"]), job.overrides)
    variant = is_variant(job.overrides)
    if settings.dry_run:
        plan = build_plan(settings.recipe)
        check_models(plan, settings.runtime.folder, quiet=True)
        show_plan(plan, settings.runtime, variant, graph=settings.dry_run == "graph")
        return
    execution = execute(settings, servers, job.overrides, variant=variant, tags={TAG: sweep} if sweep else None)
    if sweep:
        keep_result(job, execution)
    else:
        job.verdict = show_result(execution.run, execution.outcomes, time.monotonic() - started)
    if settings.gate.enforce and job.decision is not None:
        job.code = exit_codes.DECISIONS[job.decision]


def keep_result(job: "Job", execution: "Execution") -> None:
    """Keep the result of a job for the end of its sweep."""
    from flows.console.show import verdicts_of

    plan = execution.run.session.plan
    places = {outcome.step: outcome.place for outcome in execution.outcomes}
    for job.judge, job.verdict in verdicts_of(execution.run, places).items():  # the last verdict is the job's
        pass
    job.folders = {name: place.out for name, place in places.items()}
    job.report = next((step.name for step in reversed(plan.steps) if step.kind is Kind.REPORT), "")
    job.home = execution.run.session.store.root


def end_sweep(jobs: "Sequence[Job]") -> None:
    """Show a sweep's jobs as a table and write its page.  Raises MachineError."""
    from flows.sweeps.page import write_page
    from flows.sweeps.results import Sweep, sweep_name
    from flows.sweeps.table import show_jobs

    show_jobs(sweep := Sweep(sweep_name(sys.argv[1:]), jobs))
    if sweep.best is not None:
        sys.stdout.write(f"  sweep  {write_page(sweep)}\n")


def run_jobs(servers: Servers) -> int:
    """Run the command line's job, or all jobs of its sweep; returns the highest exit code."""
    jobs: list[Job] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def run_next(config: DictConfig) -> None:
        run_job(config, jobs, servers)

    run_next()
    if len(jobs) > 1:
        end_sweep(jobs)
    return max((job.code for job in jobs), default=0)


def cli() -> None:
    """Run the command line.

    Exit codes: 0 done, 2 an error, 130 interrupted; with gate.enforce also 3 do not ship, 4 not enough data.  A sweep exits with
    the highest code of its jobs.
    """
    prepare_terminal()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = 0
    with ExitStack() as until_end:
        if {"-m", "--multirun"} & set(sys.argv):  # for the multirun.yaml that Hydra writes
            folder = until_end.enter_context(tempfile.TemporaryDirectory(prefix="stillroom-"))
            sys.argv[1:1] = [f"hydra.sweep.dir={folder}"]
        sys.argv[1:] = flags_first(sys.argv[1:])
        try:
            code = run_jobs(until_end.enter_context(Servers()))
        except StillroomError as error:
            log.error("%s", error)
            code = exit_codes.USER
        except KeyboardInterrupt:
            log.error("interrupted; finished steps are kept, run the same command again to go on")
            code = exit_codes.interrupted()
    if code:
        sys.exit(code)


if __name__ == "__main__":
    cli()
