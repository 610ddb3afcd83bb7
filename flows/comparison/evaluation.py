"""The evaluation of a recipe, lent to other models."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.comparison.contestants import Contestant
from flows.planning.plan import build_plan
from flows.planning.steps import Plan, Step
from tasks.shared.errors import ConfigError
from tasks.shared.technique import Kind

MODELS = ("baseline", "candidates", "repeats", "reference")
"""Ports of an evaluation step that name models: the compared ones replace the recipe's own."""


def evaluation_of(recipe: Mapping[str, Any], contestants: Sequence[Contestant]) -> dict[str, Any]:
    """Return a recipe with the evaluation of another one, and other models in place of its own.

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
    steps["report"] = {
        "_target_": "tasks.report.html.Html", "title": "Comparison",
        "inputs": {"verdict": verdicts[0].name, "scores": [step.name for step in judged], "models": [f"models.{one.name}" for one in contestants]},
    }  # fmt: skip
    models = {one.name: {"path": str(one.path)} for one in contestants}
    return {"name": "compare", "seed": recipe["seed"], "models": _needed(recipe, plan, steps) | models, "steps": steps}


def _others(step: Step) -> list[str]:
    """Names that a step reads besides the models under test."""
    return [name for port, names in step.inputs.items() if port not in MODELS for name in names]


def _needed(recipe: Mapping[str, Any], plan: Plan, steps: Mapping[str, Any]) -> dict[str, Any]:
    """Sources of the recipe that the kept steps still read."""
    read = {name for step in steps if step != "report" for name in _others(plan.step(step))}
    return {name: node for name, node in recipe["models"].items() if f"models.{name}" in read}


def _with_models(node: Mapping[str, Any], step: Step, contestants: Sequence[Contestant]) -> dict[str, Any]:
    if step.stage != "evaluate" or "baseline" not in step.technique.ports:
        return dict(node)
    names = [f"models.{one.name}" for one in contestants]
    inputs = {port: value for port, value in node["inputs"].items() if port not in MODELS}
    return {**node, "inputs": {**inputs, "baseline": names[0], "candidates": names[1:]}}
