"""Evaluation of a recipe, applied to other models."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from flows.comparison.contestants import Contestant
from flows.planning.catalog import first_that_produces
from flows.planning.plan import build_plan
from flows.planning.steps import Plan, Step
from flows.planning.wiring import recipe_inputs
from tasks.shared.errors import ConfigError
from tasks.shared.technique import Kind

REPORT = "report"
"""Name of the step that reports on a comparison."""
MODELS = frozenset({"baseline", "candidates", "repeats", "reference"})
"""Ports of an evaluation step for models: the compared models replace the recipe's own."""
EXPLAINS = "explains"
"""Setting of a verdict that names some of the recipe's models, so it falls away with them."""


def evaluation_of(recipe: Mapping[str, Any], contestants: Sequence[Contestant]) -> dict[str, Any]:
    """Return a recipe with the evaluation of a given one, for other models.

    contestants: the baseline first.  Raises ConfigError if the recipe does not have exactly one verdict.
    """
    nodes = dict(recipe["steps"])
    plan = build_plan(recipe)
    verdicts = [step for step in plan.steps if step.kind is Kind.VERDICT]
    if len(verdicts) != 1:
        raise ConfigError(
            f"recipe {recipe['name']}", f"{len(verdicts)} verdicts", "one", "choose another with --recipe"
        )
    judged = [plan.step(name) for name in verdicts[0].inputs["scores"]]
    wanted = {step.name for step in (*judged, *verdicts)}
    waiting = [name for step in judged for name in _others(step)]
    while waiting:
        name = waiting.pop()
        if name in wanted or name in plan.sources:
            continue
        wanted.add(name)
        waiting += _others(plan.step(name))
    steps = {name: _with_models(nodes[name], plan.step(name), contestants) for name in nodes if name in wanted}
    steps[REPORT] = _report(verdicts[0].name, [step.name for step in judged], contestants)
    models = {one.name: {"path": str(one.path)} for one in contestants}
    return {"name": "compare", "seed": recipe["seed"], "models": _needed(recipe, plan, steps) | models, "steps": steps}


def _report(verdict: str, scores: Sequence[str], contestants: Sequence[Contestant]) -> dict[str, Any]:
    """Node of a step that reports on these models, with all ports that a comparison can fill."""
    entry = first_that_produces(Kind.REPORT)
    given = {
        Kind.VERDICT: [verdict],
        Kind.SCORES: list(scores),
        Kind.MODEL: [f"models.{one.name}" for one in contestants],
    }
    inputs: dict[str, Any] = {}
    for name, port in entry.spec.ports.items():
        fitting = [artifact for kind in port.kinds for artifact in given.get(kind, ())]
        if fitting:
            inputs[name] = fitting if port.many else fitting[0]
    titled = "title" in {field.name for field in fields(entry.technique)}
    return {"_target_": entry.target, **({"title": "Comparison"} if titled else {}), "inputs": inputs}


def _others(step: Step) -> list[str]:
    """Names of a step's inputs, except the models under test."""
    return [name for port, names in step.inputs.items() if port not in MODELS for name in names]


def _needed(recipe: Mapping[str, Any], plan: Plan, steps: Mapping[str, Any]) -> dict[str, Any]:
    """Source models of the recipe that the kept steps still read."""
    read = {name for step in steps if step != REPORT for name in _others(plan.step(step))}
    return {name: node for name, node in recipe["models"].items() if f"models.{name}" in read}


def _with_models(node: Mapping[str, Any], step: Step, contestants: Sequence[Contestant]) -> dict[str, Any]:
    inputs = recipe_inputs(step)
    if MODELS & step.technique.spec.ports.keys():
        names = [f"models.{one.name}" for one in contestants]
        inputs |= dict.fromkeys(MODELS) | {"baseline": names[0], "candidates": names[1:]}
    return {**{name: value for name, value in node.items() if name != EXPLAINS}, "inputs": inputs}
