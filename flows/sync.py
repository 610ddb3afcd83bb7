"""Write params.yaml and dvc.yaml from the tracked recipes, and the tables of techniques.

python -m flows.sync                     bring these files up to date
python -m flows.sync my_recipe           track another recipe
python -m flows.sync --remove my_recipe  stop tracking it; its artifacts stay
python -m flows.sync --check             exit with 1 if a file is stale (CI)
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from flows.console import exit_codes
from flows.console.terminal import prepare_terminal
from flows.planning.config import compose_recipe
from flows.planning.plan import build_plan
from flows.versioning.documents import stale_documents, write_documents
from flows.versioning.files import locked, stale_files, write_files
from flows.versioning.params import recipe_params, tracked_params
from tasks.shared.errors import ConfigError, StillroomError

log = logging.getLogger("stillroom")


def compose_tracked(names: Sequence[str]) -> dict[str, Any]:
    """Content of params.yaml for these recipes, from conf/.  Raises ConfigError."""
    recipes = {}
    for name in names:
        recipes[name] = recipe_params(build_plan(compose_recipe(name).recipe))
    return recipes


def choose(add: Sequence[str], remove: Sequence[str]) -> list[str]:
    """Names of the recipes to track from now on.  Raises ConfigError."""
    tracked = list(tracked_params())
    for name in remove:
        if name not in tracked:
            raise ConfigError("--remove", f"{name!r} is not tracked", ", ".join(tracked) or "a tracked recipe")
    names = [name for name in dict.fromkeys([*tracked, *add]) if name not in remove]
    if not names:
        raise ConfigError("params.yaml", "no tracked recipe", "at least one", "python -m flows.sync support_bot")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.  Exit codes: 0; 1 for a stale file with --check; 2 for a message."""
    prepare_terminal()
    parser = argparse.ArgumentParser(
        prog="python -m flows.sync",
        description="Write params.yaml and dvc.yaml from the tracked recipes, and the tables of techniques.",
    )
    parser.add_argument("recipes", nargs="*", help="further recipes to track")
    parser.add_argument(
        "--remove", action="append", default=[], metavar="RECIPE", help="stop tracking a recipe; its artifacts stay"
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file is stale")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            tracked = compose_tracked(choose(options.recipes, options.remove))
            stale = ", ".join(path.name for path in [*stale_files(tracked), *stale_documents()])
            log.info("stale: %s; run python -m flows.sync", stale) if stale else log.info("up to date")
            return 1 if stale else 0
        with locked():
            changed = [*write_files(compose_tracked(choose(options.recipes, options.remove))), *write_documents()]
        log.info("changed: %s", ", ".join(changed) or "nothing")
    except StillroomError as error:
        log.error("%s", error)
        return exit_codes.USER
    return 0


if __name__ == "__main__":
    sys.exit(main())
