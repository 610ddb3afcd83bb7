"""Deployments of recipes on a Prefect server, served until interrupted."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from flows.orchestration.servers import URL, profile_url, server_answers
from flows.planning.config import check_name, compose_recipe
from flows.planning.plan import build_plan
from tasks.shared.errors import ConfigError, ErrorList, MachineError, StillroomError

log = logging.getLogger("stillroom")


def check_server() -> str:
    """URL of the user's Prefect server.  Raises ConfigError or MachineError."""
    hint = f"make ui, then: export {URL}=http://127.0.0.1:4200/api"
    url = os.environ.get(URL) or profile_url()
    if not url:
        raise ConfigError(URL, "not set", "a Prefect server that keeps the schedule", hint)
    if not server_answers(url):
        raise MachineError(URL, f"{url} does not answer", "a running Prefect server", hint)
    return url


def check_recipes(names: Sequence[str], overrides: Sequence[str]) -> set[Path]:
    """Compose and plan every recipe; returns the folders of their artifacts.  Raises ErrorList."""
    problems: list[StillroomError] = []
    folders: set[Path] = set()
    for name in names:
        try:
            settings = compose_recipe(name, overrides)
            folders.add(settings.runtime.folder)
            check_name(str(settings.recipe["name"]), [f"recipe={name}", *overrides])
            build_plan(settings.recipe)
        except ErrorList as error:
            problems.extend(error.errors)
        except StillroomError as error:
            problems.append(error)
    if problems:
        raise ErrorList(problems)
    return folders


def build_schedule(cron: str | None, interval: float | None) -> Any:
    """Prefect's schedule, or None for runs on demand only.  Raises ConfigError."""
    from datetime import timedelta

    from prefect.schedules import Cron, Interval
    from pydantic import ValidationError

    if interval is not None:
        if interval <= 0:
            raise ConfigError("--interval", str(interval), "seconds above 0")
        return Interval(timedelta(seconds=interval))
    if cron is None:
        return None
    from prefect.client.schemas.schedules import CronSchedule

    try:
        CronSchedule(cron=cron)
    except ValidationError as error:
        raise ConfigError(
            "--cron", repr(cron), error.errors()[0]["msg"], 'minute hour day month weekday, like "0 3 * * *"'
        ) from None
    return Cron(cron)


def serve(names: Sequence[str], overrides: Sequence[str], schedule: Any, at_once: int) -> None:
    """Deploy each recipe and execute its runs until interrupted; then the schedules pause."""
    from prefect import serve as serve_deployments
    from prefect.flows import EntrypointType

    from flows.orchestration.deployed import compress

    flow: Any = compress
    deployments = [
        flow.to_deployment(
            name=name,
            parameters={"recipe": name, "overrides": list(overrides)},
            schedule=schedule,
            tags=[f"recipe:{name}"],
            description=f"python -m flows.compress +recipe={name} {' '.join(overrides)}".strip(),
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        for name in names
    ]
    for name in names:
        log.info("compress/%s waits for runs; start one:  prefect deployment run compress/%s", name, name)
    serve_deployments(*deployments, print_starting_message=False, limit=at_once)


def until_interrupted(work: Callable[[], None], folders: Iterable[Path]) -> None:
    """Serve until interrupted, then mark the runs that ended with this command as crashed."""
    from flows.orchestration.runs import sweep

    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it logs every connection that ends with us
    try:
        work()
    except (KeyboardInterrupt, SystemExit):
        log.debug("interrupted")  # Prefect's runner turns SIGINT and SIGTERM into either
    log.error("no longer served; schedules pause, running steps were ended, finished steps are kept")
    for folder in folders:
        sweep(folder / "artifacts" / ".runs")
