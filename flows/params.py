"""A recipe's part of params.yaml: what its steps' keys read, and beside it, in no stage's params, how they are carried out."""

from collections.abc import Mapping
from typing import Any

import yaml

from flows.plan import Plan
from tasks.shared.errors import ConfigError
from tasks.shared.keys import PROJECT, library_versions

PARAMS = PROJECT / "params.yaml"


def recipe_params(recipe: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Everything that the keys of a recipe's steps read, resolved; under `unkeyed`, the settings that no key reads."""
    steps = {}
    for step in plan.steps:
        inputs = {
            port: (list(names) if step.technique.ports[port].many else names[0]) for port, names in step.inputs.items()
        }
        steps[step.name] = {
            "_target_": step.target,
            "inputs": inputs,
            **step.keyed(),
            "versions": library_versions(step.technique.libraries),
        }
    unkeyed = {step.name: found for step in plan.steps if (found := step.unkeyed())}
    return {"seed": plan.seed, "models": recipe["models"], "steps": steps} | ({"unkeyed": unkeyed} if unkeyed else {})


def recipe_of(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe, as `build_plan` takes it, from its part of params.yaml."""
    rest = {key: value for key, value in params.items() if key != "unkeyed"}
    steps = {step: _merged(node, params.get("unkeyed", {}).get(step, {})) for step, node in params["steps"].items()}
    return {"name": name, **rest, "steps": steps}


def tracked_params() -> dict[str, Any]:
    """The recipes in params.yaml."""
    found = yaml.safe_load(PARAMS.read_text("utf-8")) if PARAMS.is_file() else None
    return dict((found or {}).get("recipes") or {})


def tracked_recipe(name: str) -> dict[str, Any]:
    """A tracked recipe as params.yaml has it now.  Raises ConfigError if it is not there."""
    known = tracked_params()
    if name not in known:
        wanted = ", ".join(known) or "a tracked recipe"
        raise ConfigError("params.yaml", f"no recipe {name!r}", wanted, f"python -m flows.sync {name}")
    return recipe_of(name, known[name])


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(first)
    for key, value in second.items():
        merged[key] = _merged(merged[key], value) if isinstance(merged.get(key), Mapping) else value
    return merged
