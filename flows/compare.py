"""Compare models without a recipe of their own; the first is the baseline.

python -m flows.compare big/ small/ small.gguf                files of models
python -m flows.compare support_bot/tuned support_bot/quick4  finished steps
python -m flows.compare champion:support_bot other_run        MLflow's champion,
                                                              a finished run
python -m flows.compare A B --recipe support_bot steps.answers.limit=100

Test data, measures and margins come from the recipe that made the models, or
from --recipe; overrides change them.

Exit codes: 0 ship, 3 do not ship, 4 not enough data, 2 an error,
130 interrupted.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flows.comparison.contestants import find_contestant, with_distinct_names
from flows.comparison.evaluation import evaluation_of
from flows.console import exit_codes
from flows.console.terminal import prepare_terminal
from flows.orchestration.servers import Servers
from flows.planning.config import Settings, compose_recipe, recipe_names
from flows.running.child import Stopped
from tasks.shared.errors import StillroomError

log = logging.getLogger("stillroom")
DEFAULT_RECIPE = "support_bot"


def compare(texts: Sequence[str], recipe: str, overrides: Sequence[str], folder: Path | None = None) -> str:
    """Run a comparison, show it, and return the decision.

    texts: models as typed, the baseline first.
    recipe: recipe with the evaluation; empty: the models' own.
    folder: the user's own configuration.
    Raises StillroomError.
    """
    from flows.console.show import show_result
    from flows.orchestration.execute import execute

    started = time.monotonic()
    own_files = [f"hydra.searchpath=[file://{folder.resolve()}]"] if folder else []
    about_runs = [item for item in overrides if item.startswith(("runtime.", "tracking."))]
    general = compose_recipe(recipe or DEFAULT_RECIPE, [*own_files, *about_runs])
    contestants = [find_contestant(text, general.runtime.folder, general.tracking.uri) for text in texts]
    named = {*recipe_names(), *(recipe_names(folder) if folder else ())}
    own = next((one.recipe for one in contestants if one.recipe in named), DEFAULT_RECIPE)
    wanted = compose_recipe(recipe or own, [*own_files, *overrides])
    contestants = with_distinct_names(contestants)
    log.info("baseline %s; measures and margins of %s", contestants[0].name, wanted.recipe["name"])
    settings = Settings(
        evaluation_of(wanted.recipe, contestants),
        wanted.runtime,
        replace(wanted.tracking, kind="none"),
        wanted.gate,
        dry_run=False,
    )
    with Servers() as servers:
        execution = execute(settings, servers, [], variant=True)  # a variant is not shown in a recipe's folder
        verdict = show_result(execution.run, execution.outcomes, time.monotonic() - started)
    assert verdict is not None, "a comparison has a verdict"
    return verdict.decision


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    prepare_terminal()
    parser = argparse.ArgumentParser(
        prog="python -m flows.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="a folder, a .gguf file, a step, a run or a champion"
    )
    parser.add_argument("--recipe", default="", help="recipe with the test data, measures and margins")
    parser.add_argument("--config-dir", type=Path, metavar="FOLDER", help="your own configuration, with recipe/*.yaml")
    options = parser.parse_intermixed_args(arguments)
    overrides = [item for item in options.models if item.startswith("~") or ("=" in item and not Path(item).exists())]
    models = [item for item in options.models if item not in overrides]
    if len(models) < 2:
        log.error(
            "models: %d given\n  wanted: at least two, the baseline first\n  fix: python -m flows.compare A B",
            len(models),
        )
        return exit_codes.USER
    try:
        return exit_codes.DECISIONS[compare(models, options.recipe, overrides, options.config_dir)]
    except StillroomError as error:
        log.error("%s", error)
        return exit_codes.USER
    except (KeyboardInterrupt, Stopped):
        log.error("interrupted; finished measurements are kept, run the same command again to go on")
        return exit_codes.interrupted()


if __name__ == "__main__":
    sys.exit(main())
