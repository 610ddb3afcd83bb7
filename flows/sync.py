"""Write params.yaml and dvc.yaml from the tracked recipes, and record finished steps in dvc.lock.

python -m flows.sync                  bring both files up to date
python -m flows.sync my_recipe        track another recipe
python -m flows.sync --check          exit with 1 if a file is not what the recipes say (CI)
"""

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from flows.config import compose_recipe
from flows.params import PARAMS, recipe_of, recipe_params, tracked_params
from flows.plan import Plan, Step, build_plan
from tasks.shared.errors import ConfigError, StillroomError
from tasks.shared.keys import PROJECT, code_files

log = logging.getLogger("stillroom")
HEAD = "# Written by `python -m flows.sync` from conf/recipe/. Edit the recipe, not this file.\n"
DVC, LOCK = PROJECT / "dvc.yaml", PROJECT / ".dvc" / "tmp" / "stillroom.lock"


def stage_name(recipe: str, step: str) -> str:
    """The DVC stage of a step."""
    return f"{recipe}-{step}"


def dvc_stage(plan: Plan, step: Step) -> dict[str, Any]:
    """One stage of dvc.yaml: the command, code and inputs as deps, exactly the step's own params, the artifact as outs."""
    folder = f"artifacts/{plan.recipe}"
    models = [name for name in step.needs if name in plan.sources]
    outs = [f"{folder}/{step.name}/out", f"{folder}/{step.name}/manifest.json"]
    return {
        "cmd": f"python -m flows.stage {plan.recipe} {step.name}",
        "deps": [
            *(file.relative_to(PROJECT).as_posix() for file in code_files(step.module)),
            *(f"{folder}/{name}/out" for name in step.needs if name not in plan.sources),
        ],
        "params": [f"recipes.{plan.recipe}.{key}" for key in (f"steps.{step.name}", "seed", *models)],
        "outs": outs,
    }


def dvc_yaml(plans: Sequence[Plan]) -> dict[str, Any]:
    """The whole dvc.yaml: an explicit stage per step, metrics and plots where a stage writes them."""
    content: dict[str, Any] = {
        "stages": {stage_name(plan.recipe, step.name): dvc_stage(plan, step) for plan in plans for step in plan.steps}
    }
    verdicts = [
        f"artifacts/{plan.recipe}/{step.name}/out/metrics.json"
        for plan in plans
        for step in plan.steps
        if step.stage == "evaluate"
    ]
    curves = [
        f"artifacts/{plan.recipe}/{step.name}/out/loss.csv"
        for plan in plans
        for step in plan.steps
        if step.stage == "distill"
    ]
    if verdicts:
        content["metrics"] = verdicts
    if curves:
        content["plots"] = [{curve: {"x": "step", "y": "train_loss"}} for curve in curves]
    return content


def expected_files(recipes: Mapping[str, Any]) -> dict[Path, str]:
    """What both files should hold for these recipes' params."""
    plans = [build_plan(recipe_of(name, params)) for name, params in recipes.items()]
    dump: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 120}
    return {
        PARAMS: HEAD + yaml.safe_dump({"recipes": dict(recipes)}, **dump),
        DVC: HEAD + yaml.safe_dump(dvc_yaml(plans), **dump),
    }


def write_files(recipes: Mapping[str, Any]) -> list[str]:
    """Bring both files up to date; returns the names of those that changed."""
    changed = []
    for path, text in expected_files(recipes).items():
        if not path.is_file() or path.read_text("utf-8") != text:
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(text, "utf-8")
            temporary.replace(path)
            changed.append(path.name)
    return changed


def update_recipe(recipe: Mapping[str, Any], plan: Plan) -> list[str]:
    """Put a tracked recipe's current settings into both files, under the lock that all writers take."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(LOCK, timeout=120):
        return write_files(tracked_params() | {plan.recipe: recipe_params(recipe, plan)})


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line.  Exit codes: 0, 1 with --check when a file is stale, 2 for a message."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.sync", description="Write params.yaml and dvc.yaml from the tracked recipes."
    )
    parser.add_argument("recipes", nargs="*", help="recipes to track besides those in params.yaml")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file is stale")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        names = list(dict.fromkeys([*tracked_params(), *options.recipes]))
        if not names:
            raise ConfigError("params.yaml", "no tracked recipe", "at least one", "python -m flows.sync support_bot")
        recipes = {}
        for name in names:
            recipe = compose_recipe(name).recipe
            recipes[name] = recipe_params(recipe, build_plan(recipe))
        if options.check:
            stale = [
                path.name
                for path, text in expected_files(recipes).items()
                if not path.is_file() or path.read_text("utf-8") != text
            ]
            log.info("stale: %s; run python -m flows.sync", ", ".join(stale)) if stale else log.info("up to date")
            return 1 if stale else 0
        LOCK.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(LOCK, timeout=120):
            log.info("changed: %s", ", ".join(write_files(recipes)) or "nothing")
    except StillroomError as error:
        log.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
