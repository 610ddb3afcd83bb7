"""Write params.yaml and dvc.yaml from the tracked recipes.

python -m flows.sync                     bring both files up to date
python -m flows.sync my_recipe           track another recipe
python -m flows.sync --remove my_recipe  track it no longer; its artifacts stay
python -m flows.sync --check             exit with 1 if a file is not what the recipes say (CI)
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from flows import exit_codes
from flows.config import compose_recipe
from flows.params import PARAMS, changed_settings, read_mapping, recipe_of, recipe_params, tracked_params
from flows.pipeline import dvc_yaml, stage_name
from flows.plan import build_plan
from tasks.shared.errors import ConfigError, MachineError, StillroomError
from tasks.shared.keys import PROJECT

__all__ = ["LOCK", "Update", "expected_files", "locked", "main", "stage_name", "update_recipe", "write_files"]
log = logging.getLogger("stillroom")
HEAD = "# Written by `python -m flows.sync` from conf/recipe/. Edit the recipe, not this file.\n"
DVC, LOCK = PROJECT / "dvc.yaml", PROJECT / ".dvc" / "tmp" / "stillroom.lock"
BEFORE = PROJECT / ".dvc" / "tmp" / "params.before.yaml"
"""params.yaml as it was before a run put a recipe's own settings into it."""
PATIENCE_S = 600


@dataclass(frozen=True)
class Update:
    """What bringing both files up to a recipe did.  False if they already said what the recipe says.

    files: names of the files that were written.  changes: every setting in params.yaml that is another one now.
    """

    files: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.files)

    def describe(self, most: int = 8) -> str:
        """One message for the user: what changed, and how to get back what was there."""
        if not self.changes:
            return f"updated from the recipe: {', '.join(self.files)}"
        rows = [f"  {change}" for change in self.changes[:most]]
        rest = len(self.changes) - most
        return "\n".join(
            [
                "params.yaml follows the recipe again; it said something else (an edited recipe, or `dvc exp apply`):",
                *rows,
                *([f"  and {rest} more"] if rest > 0 else []),
                f"  to keep the former values, write them into the recipe; the former file is {BEFORE.relative_to(PROJECT)}.",
                "  runtime.sync=false runs the recipe as a variant and leaves params.yaml as it is.",
            ]
        )


@contextmanager
def locked(patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold the only right to write params.yaml, dvc.yaml and dvc.lock on this checkout.  Raises MachineError after a while."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(LOCK, timeout=patience_s):
            yield
    except Timeout as error:
        raise MachineError(
            str(LOCK),
            f"held by another run for more than {patience_s:.0f} s",
            "one writer at a time",
            "wait for that run",
        ) from error


def expected_files(recipes: Mapping[str, Any]) -> dict[Path, str]:
    """What both files should hold for these recipes' params."""
    plans = [build_plan(recipe_of(name, params)) for name, params in recipes.items()]
    dump: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 120}
    return {
        PARAMS: HEAD + yaml.safe_dump({"recipes": dict(recipes)}, **dump),
        DVC: HEAD + yaml.safe_dump(dvc_yaml(plans), **dump),
    }


def stale_files(recipes: Mapping[str, Any]) -> dict[Path, str]:
    """Those of both files that hold something else, with what they should hold."""
    expected = expected_files(recipes)
    return {path: text for path, text in expected.items() if not path.is_file() or path.read_bytes() != text.encode()}


def write_files(recipes: Mapping[str, Any]) -> list[str]:
    """Bring both files up to date; returns the names of those that changed.  Raises ConfigError rather than lose foreign stages."""
    stale = stale_files(recipes)
    if DVC in stale:
        check_stages()
    for path, text in stale.items():
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    return [path.name for path in stale]


def check_stages() -> None:
    """Raise ConfigError if dvc.yaml is broken or holds stages that we would not write again."""
    stages = read_mapping(DVC).get("stages") if DVC.is_file() else None
    nodes = stages.items() if isinstance(stages, dict) else ()
    ours = "python -m flows.stage "
    foreign = [
        str(name) for name, node in nodes if not (isinstance(node, dict) and str(node.get("cmd")).startswith(ours))
    ]
    if foreign:
        raise ConfigError(
            "dvc.yaml",
            f"stages that flows.sync did not write: {', '.join(foreign)}",
            "only stages of tracked recipes",
            "move them into a dvc.yaml in a folder of its own; DVC reads every dvc.yaml below the project",
        )


def update_recipe(recipe: Mapping[str, Any], plan: Any) -> Update:
    """Put a tracked recipe's current settings into both files, under the lock that all writers take.

    The other recipes' parts stay as they are.  Raises ConfigError if a file is broken; nothing is changed then.
    """
    with locked():
        before, now = tracked_params(), recipe_params(recipe, plan)
        changes = list(changed_settings(before[plan.recipe], now)) if plan.recipe in before else []
        former = PARAMS.read_bytes() if changes else b""
        files = write_files(before | {plan.recipe: now})
        if changes:
            BEFORE.write_bytes(former)
    return Update(tuple(files), tuple(changes))


def compose_tracked(names: Sequence[str]) -> dict[str, Any]:
    """What params.yaml should hold for these recipes, from conf/.  Raises ConfigError."""
    recipes = {}
    for name in names:
        recipe = compose_recipe(name).recipe
        recipes[name] = recipe_params(recipe, build_plan(recipe))
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
    """Command line.  Exit codes: 0, 1 with --check when a file is stale, 2 for a message."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.sync", description="Write params.yaml and dvc.yaml from the tracked recipes."
    )
    parser.add_argument("recipes", nargs="*", help="recipes to track besides those in params.yaml")
    parser.add_argument("--remove", action="append", default=[], metavar="RECIPE", help="track it no longer")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file is stale")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if options.check:
            stale = ", ".join(
                path.name for path in stale_files(compose_tracked(choose(options.recipes, options.remove)))
            )
            log.info("stale: %s; run python -m flows.sync", stale) if stale else log.info("up to date")
            return 1 if stale else 0
        with locked():
            changed = write_files(compose_tracked(choose(options.recipes, options.remove)))
        log.info("changed: %s", ", ".join(changed) or "nothing")
    except StillroomError as error:
        log.error("%s", error)
        return exit_codes.USER
    return 0


if __name__ == "__main__":
    sys.exit(main())
