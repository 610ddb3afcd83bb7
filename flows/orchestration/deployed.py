"""Flow of a Prefect deployment: a recipe composed from the parameters of the flow run."""

import atexit
from typing import Any

from prefect import flow, runtime
from prefect.states import State

from flows.console.terminal import prepare_terminal
from flows.orchestration.flow import as_state, flow_name
from flows.orchestration.servers import Servers
from flows.planning.config import Settings, compose_recipe, is_variant
from flows.running.runner import Outcome


def run_name() -> str:
    """Name of the flow run: the recipe and its overrides."""
    given = runtime.flow_run.parameters
    return flow_name(str(given.get("recipe", "")), given.get("overrides") or [])


@flow(name="compress", flow_run_name=run_name, persist_result=False)
def compress(recipe: str, overrides: list[str] | None = None) -> "State[Any]":
    """Run every step of a recipe that has no artifact for its key.

    Args:
        recipe: name of a file in conf/recipe
        overrides: as on the command line, for example steps.slim.ratio=0.3
    """
    from flows.orchestration.execute import execute

    prepare_terminal()
    changed = list(overrides or [])
    servers = Servers()
    # The run has this process to itself, and counts as present until the server knows its end.
    atexit.register(servers.until_end.close)

    def work() -> list[Outcome]:
        settings: Settings = compose_recipe(recipe, changed)
        typed = [f"+recipe={recipe}", *changed]
        return execute(settings, servers, typed, variant=is_variant(typed)).outcomes

    return as_state(work, [])
