"""Compress a model by a recipe.

python -m flows.compress +recipe=support_bot
python -m flows.compress +recipe=support_bot dry_run=true        the plan, and what it will cost
python -m flows.compress +recipe=support_bot steps.slim.ratio=0.3
"""

import logging
import signal
import sys
import time
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from tasks.shared.errors import StillroomError

if TYPE_CHECKING:
    from collections.abc import Callable

    from flows.config import Settings
    from flows.plan import Plan, Step
    from flows.runner import Outcome, Run
    from tasks.shared.tracking import Tracker

log = logging.getLogger("stillroom")
EXIT_USER, EXIT_NOT_SHIPPED, EXIT_INTERRUPTED = 2, 3, 130


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(config: DictConfig) -> None:
    """Compose, plan, run, show.  Exit codes: 0 done, 2 a message, 3 not to ship under gate.enforce, 130 interrupted."""
    from hydra.core.hydra_config import HydraConfig

    prepare_logging()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    overrides = [
        item
        for item in HydraConfig.get().overrides.task
        if not item.lstrip("+").startswith(("recipe=", "runtime.", "tracking", "gate.", "dry_run="))
    ]
    try:
        code = compress(config, overrides)
    except StillroomError as error:
        log.error("%s", error)
        code = EXIT_USER
    except KeyboardInterrupt:
        log.error("interrupted; finished steps are kept, run the same command again to go on")
        code = EXIT_INTERRUPTED
    if code:
        sys.exit(code)


def compress(config: DictConfig, overrides: list[str]) -> int:
    """Run one composed recipe and show the result; returns the exit code."""
    from flows.config import read_settings
    from flows.plan import build_plan
    from flows.show import show_plan, show_result

    started = time.monotonic()
    settings = read_settings(config)
    plan = build_plan(settings.recipe)
    if settings.dry_run:
        show_plan(plan, settings.runtime)
        return 0
    run = open_run(settings, plan, variant=bool(overrides))
    outcomes = execute(run, settings, plan, overrides)
    decision = show_result(run, outcomes, time.monotonic() - started)
    return EXIT_NOT_SHIPPED if settings.gate.enforce and decision not in {None, "ship"} else 0


def open_run(settings: "Settings", plan: "Plan", variant: bool) -> "Run":
    """A run of this plan; a tracked recipe without overrides brings params.yaml and dvc.yaml up to date first."""
    from flows.params import tracked_params
    from flows.runner import Run
    from flows.stage import Session
    from flows.sync import update_recipe
    from tasks.shared.artifacts import disk_errors
    from tasks.shared.keys import PROJECT
    from tasks.shared.tracking import NullTracker

    folder = settings.runtime.folder
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    tracked = folder == PROJECT and settings.runtime.dvc and plan.recipe in tracked_params()
    if tracked and not variant and (changed := update_recipe(settings.recipe, plan)):
        log.info("updated from the recipe: %s", ", ".join(changed))
    return Run(Session(plan, settings.runtime, variant), settings.recipe, NullTracker(), tracked)


def execute(run: "Run", settings: "Settings", plan: "Plan", overrides: list[str]) -> "list[Outcome]":
    """Find that all is done, or run what is not."""
    import os

    from flows.estimate import check_machine
    from flows.runner import run_plain, run_prefect

    if not os.environ.get("PREFECT_API_URL") and (done := run.cached()) is not None:
        log.info("nothing to do: all %d steps are up to date", len(done))
        return done
    check_machine(plan, settings.runtime)
    run.tracker = open_tracker(settings)
    run.tracker.start(plan.recipe, tags(settings, overrides))
    runner = run_prefect if settings.runtime.orchestrator == "prefect" else run_plain
    status = "FAILED"
    try:
        outcomes = runner(run, announcer(plan))
        status = "FINISHED"
        return outcomes
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        run.tracker.finish(status)


def open_tracker(settings: "Settings") -> "Tracker":
    """The tracker of the configuration."""
    from tasks.shared.tracking import MlflowTracker, NullTracker

    if settings.tracking.kind == "none":
        return NullTracker()
    return MlflowTracker(settings.tracking.uri, settings.runtime.folder, str(settings.recipe["name"]))


def tags(settings: "Settings", overrides: list[str]) -> dict[str, str]:
    """What identifies a run in MLflow."""
    import shutil
    import subprocess

    from tasks.shared.keys import PROJECT, digest_json

    found = {
        "recipe": str(settings.recipe["name"]),
        "overrides": " ".join(overrides),
        "config": digest_json(settings.recipe),
    }
    if git := shutil.which("git"):
        head = subprocess.run(
            [git, "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, timeout=10, check=False
        )
        found["git.commit"] = head.stdout.strip()
    return found


def announcer(plan: "Plan") -> "Callable[[Step], None]":
    """A function that prints a line when a step begins."""
    numbers = {step.name: index for index, step in enumerate(plan.steps, start=1)}

    def announce(step: "Step") -> None:
        log.info(
            "[%d/%d] %s (%s)",
            numbers[step.name],
            len(numbers),
            step.name,
            step.target.removeprefix("tasks.").rpartition(".")[0].replace(".", "/"),
        )

    return announce


def prepare_logging() -> None:
    """Our own lines plain on standard error; libraries from warning up."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("stillroom", "tasks"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


def cli() -> None:
    """Entry point: flags and overrides in any order (argparse would split the overrides around a flag)."""
    overrides = [item for item in sys.argv[1:] if not item.startswith("-") and ("=" in item or item.startswith("~"))]
    sys.argv[1:] = [item for item in sys.argv[1:] if item not in overrides] + overrides
    main()


if __name__ == "__main__":
    cli()
