"""A recipe in params.yaml: keyed settings of each step, and unkeyed ones apart from them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from flows.planning.steps import Plan
from flows.planning.wiring import recipe_inputs
from tasks.shared.errors import ConfigError
from tasks.shared.store.keys import PROJECT, flatten

PARAMS = PROJECT / "params.yaml"


def recipe_params(plan: Plan) -> dict[str, Any]:
    """Return a recipe's part of params.yaml: resolved settings and inputs of its steps.

    Settings that are in no key are under `unkeyed`, which no DVC stage reads.
    """
    steps = {}
    for step in plan.steps:
        steps[step.name] = {
            "_target_": step.target,
            "inputs": recipe_inputs(step),
            **({} if step.seed is None else {"seed": step.seed}),
            **step.keyed(),
            "versions": step.versions(),
        }
    unkeyed = {step.name: found for step in plan.steps if (found := step.unkeyed())}
    return {"seed": plan.seed, "models": plan.config["models"], "steps": steps} | (
        {"unkeyed": unkeyed} if unkeyed else {}
    )


def recipe_of(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe, in the form of `build_plan`, from its part of params.yaml."""
    rest = {key: value for key, value in params.items() if key != "unkeyed"}
    steps = {step: _merged(node, params.get("unkeyed", {}).get(step, {})) for step, node in params["steps"].items()}
    return {"name": name, **rest, "steps": steps}


def tracked_params() -> dict[str, Any]:
    """Read the recipes of params.yaml.

    Raises ConfigError if neither `flows.sync` nor `dvc exp` could have written the file.
    """
    if not PARAMS.is_file():
        return {}
    recipes = (read_mapping(PARAMS).get("recipes") or {}) if PARAMS.stat().st_size else {}
    if not isinstance(recipes, dict) or not all(map(_is_recipe, recipes.values())):
        raise broken_file(PARAMS, "`recipes` does not hold recipes with seed, models and steps")
    return dict(recipes)


def tracked_recipe(name: str) -> dict[str, Any]:
    """Read a tracked recipe from params.yaml.  Raises ConfigError if it is not there."""
    known = tracked_params()
    if name not in known:
        wanted = ", ".join(known) or "a tracked recipe"
        raise ConfigError("params.yaml", f"no recipe {name!r}", wanted, f"python -m flows.sync {name}")
    return recipe_of(name, known[name])


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises ConfigError with the line of the fault.
    """
    try:
        text = path.read_text("utf-8")
        found = load_yaml(text)
    except UnicodeDecodeError as error:
        raise broken_file(path, "it is no UTF-8 text") from error
    except yaml.YAMLError as error:
        raise broken_file(path, _fault(text, error)) from error
    if not isinstance(found, dict):
        raise broken_file(path, "no mapping at the top")
    return found


def _fault(text: str, error: yaml.YAMLError) -> str:
    for number, row in enumerate(text.splitlines(), start=1):
        if row.startswith(("<<<<<<< ", ">>>>>>> ")):
            return f"line {number}: a merge conflict"
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", None) or error).splitlines()[0]
    return f"line {mark.line + 1}: {problem}" if mark else problem


def broken_file(path: Path, fault: str) -> ConfigError:
    """Return the error for a generated file that cannot be read."""
    name = path.name
    fix = f"git checkout HEAD -- {name}  restores the committed version"
    if name == "params.yaml":
        fix += "; or delete it and name the recipes to track: python -m flows.sync support_bot"
    elif name == "dvc.yaml":
        fix = "delete it; python -m flows.sync writes it from the tracked recipes"
    else:
        fix += "; or delete it: the next run records all steps again"
    return ConfigError(name, fault, f"the file as {'DVC' if name == 'dvc.lock' else 'flows.sync'} wrote it", fix)


def load_yaml(text: str) -> Any:
    """Load YAML safely, by libyaml if available, which is ten times as fast."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield each difference of two versions, such as "steps.slim.ratio: 0.3 -> 0.25"."""
    old, new = flatten(before), flatten(now)
    for name in dict.fromkeys([*old, *new]):
        if name not in new:
            yield f"{name}: {old[name]!r} -> removed"
        elif name not in old:
            yield f"{name}: new, {new[name]!r}"
        elif old[name] != new[name]:
            yield f"{name}: {old[name]!r} -> {new[name]!r}"


def _is_recipe(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and all(isinstance(found.get(key), dict) for key in ("models", "steps"))
        and "seed" in found
    )


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(first)
    for key, value in second.items():
        merged[key] = _merged(merged[key], value) if isinstance(merged.get(key), Mapping) else value
    return merged
