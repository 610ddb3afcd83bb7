"""Compress a model by a recipe.

python -m flows.compress +recipe=support_bot
python -m flows.compress +recipe=support_bot dry_run=true        the plan, and what it will cost
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
from flows.console.logs import prepare_logging
from tasks.shared.errors import StillroomError
from tasks.shared.technique import Kind

if TYPE_CHECKING:
    from flows.orchestration.execute import Execution
    from flows.sweeps.results import Job

log = logging.getLogger("stillroom")
jobs: "list[Job]" = []
"""How each job of this command ended: one, or as many as a sweep has."""
FLAGS_WITH_VALUE = {
    "--config-dir",
    "-cd",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--cfg",
    "-c",
    "--package",
    "-p",
}

INFO = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(config: DictConfig) -> None:
    """One job: compose, plan, run, show.  A job that fails is noted, so that a sweep goes on; `cli` exits with the worst code."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from flows.running.child import Stopped
    from flows.sweeps.results import Job, sweep_name

    prepare_logging()
    overrides = list(HydraConfig.get().overrides.task)
    if sweep := HydraConfig.get().mode == RunMode.MULTIRUN:
        log.info("job %d: %s", len(jobs), " ".join(overrides))
    job = Job(overrides)
    jobs.append(job)
    started = time.monotonic()
    try:
        compress(config, job, sweep_name(sys.argv[1:]) if sweep else "")
    except StillroomError as error:
        log.error("%s", error)
        job.code, job.error = exit_codes.USER, error
    except Stopped as error:  # cancelled on Prefect's pages; Ctrl-C is a KeyboardInterrupt and ends the whole command
        if not sweep:
            raise KeyboardInterrupt from None
        log.error("cancelled; finished steps are kept")
        job.code, job.error = exit_codes.INTERRUPTED, error
    job.seconds = time.monotonic() - started


def compress(config: DictConfig, job: "Job", sweep: str) -> None:
    """Run one composed recipe and show the result; what a sweep shows at its end is noted in `job`.

    sweep: the name of the sweep that the job is of, if it is of one: then nothing is shown now.
    Raises StillroomError, Stopped or KeyboardInterrupt.
    """
    from flows.console.show import show_plan, show_result
    from flows.orchestration.execute import execute
    from flows.planning.config import check_name, is_variant, read_settings
    from flows.planning.plan import build_plan
    from flows.sweeps.results import TAG

    started = time.monotonic()
    settings = read_settings(config)
    check_name(str(settings.recipe["name"]), job.overrides)
    if settings.dry_run:
        show_plan(build_plan(settings.recipe), settings.runtime, is_variant(job.overrides))
        return
    execution = execute(settings, job.overrides, {TAG: sweep} if sweep else None)
    if sweep:
        note(job, execution)
    else:
        job.verdict = show_result(execution.run, execution.outcomes, time.monotonic() - started)
    if settings.gate.enforce and job.decision is not None:
        job.code = exit_codes.DECISIONS[job.decision]


def note(job: "Job", execution: "Execution") -> None:
    """What the end of a sweep shows of a job."""
    from flows.console.show import verdicts_of

    plan = execution.run.session.plan
    places = {outcome.step: outcome.place for outcome in execution.outcomes}
    for job.judge, job.verdict in verdicts_of(execution.run, places).items():  # the last one is the job's
        pass
    job.folders = {name: place.out for name, place in places.items()}
    job.report = next((step.name for step in reversed(plan.steps) if step.kind is Kind.REPORT), "")
    job.home = execution.run.session.store.root


def end_sweep() -> None:
    """The jobs together: a table, the best by verdict, and a page with plots.  Raises MachineError if it cannot be written."""
    from flows.sweeps.page import write_page
    from flows.sweeps.results import Sweep, sweep_name
    from flows.sweeps.table import show_jobs

    show_jobs(sweep := Sweep(sweep_name(sys.argv[1:]), jobs))
    if sweep.best is not None:
        sys.stdout.write(f"  sweep  {write_page(sweep)}\n")


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Flags with their values, then overrides: argparse would split the overrides around a flag."""
    flags: list[str] = []
    overrides: list[str] = []
    value_follows = False
    following = [*arguments[1:], ""][: len(arguments)]
    for item, after in zip(arguments, following, strict=True):
        if item in {"--info", "-i"} and after not in INFO:
            item = "--info=all"  # an optional value: the next override would be taken for it
        is_override = ("=" in item or item.startswith(("~", "+"))) and not item.startswith("-") and not value_follows
        (overrides if is_override else flags).append(item)
        value_follows = item in FLAGS_WITH_VALUE or item in {"--info", "-i"}
    return flags + overrides


def cli() -> None:
    """Entry point.  Exit codes: 0 done, 2 a message, 130 interrupted; under gate.enforce 3 do not ship, 4 not enough data; of a sweep, the worst."""
    from flows.orchestration.servers import servers

    scratch = ExitStack()
    if {"-m", "--multirun"} & set(sys.argv):  # Hydra writes a multirun.yaml that nobody reads
        folder = scratch.enter_context(tempfile.TemporaryDirectory(prefix="stillroom-"))
        sys.argv[1:1] = [f"hydra.sweep.dir={folder}"]
    sys.argv[1:] = flags_first(sys.argv[1:])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = 0
    try:
        main()
        if len(jobs) > 1:
            end_sweep()
        code = max((job.code for job in jobs), default=0)
    except StillroomError as error:
        log.error("%s", error)
        code = exit_codes.USER
    except KeyboardInterrupt:
        log.error("interrupted; finished steps are kept, run the same command again to go on")
        code = exit_codes.interrupted()
    finally:
        servers.close()
        scratch.close()
    if code:
        sys.exit(code)


if __name__ == "__main__":
    cli()
