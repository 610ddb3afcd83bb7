"""A recipe from the steps of the rules that apply, planned before it is written."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.advising.rules import BASELINE, SOURCE, Fact, Rule, Step
from flows.advising.situation import Facts
from flows.looking.starter import flow
from flows.planning.config import compose_recipe
from flows.planning.plan import build_plan
from tasks.shared.errors import ConfigError

DEMO: Mapping[str, float] = {"train_size": 960, "test_size": 600, "test_fraction": 0.4}
"""Settings of `curate/support`, which stands in where no data is given."""
DEMO_MEASURES = ("label", "fact")
WIDTH = 110


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Contents of a recipe besides the steps of rules.

    model: option of conf/model/ and its settings.  corpus: technique of stage curate and its settings.
    training: settings of every step that reads whole conversations.  measures: that decide, each with the same margin.
    comment: the line that says what the recipe was written for.
    """

    name: str
    comment: str
    model: tuple[str, Mapping[str, Any]]
    corpus: tuple[str, Mapping[str, Any]]
    training: Mapping[str, Any]
    measures: Sequence[str]
    margin: float


READS_ROWS = ("distill/", "logits/")
"""Stages whose techniques read whole conversations, with a limit of their length."""


def merge_steps(rules: Sequence[Rule], facts: Facts, training: Mapping[str, Any]) -> tuple[list[Step], str]:
    """Return the rules' steps in order, and the baseline's name.

    Facts have become values, and placeholders names of steps.  Settings of a later rule replace those of an earlier one.
    training: settings of every step that reads whole conversations.
    """
    merged: dict[str, Step] = {}
    baseline = source = "models.base"
    for step in (step for rule in rules for step in rule.steps):
        if (before := merged.get(step.name)) is not None:
            settings = {**before.settings, **_values(step.settings, facts)}
            merged[step.name] = Step(step.name, before.technique, settings, before.reads, candidate=before.candidate)
            continue
        settings = {**_values(step.settings, facts), **(training if step.technique.startswith(READS_ROWS) else {})}
        places = {BASELINE: baseline, SOURCE: source}
        reads = {
            port: [places.get(one, one) for one in names] if isinstance(names, list) else places.get(names, names)
            for port, names in step.reads.items()
        }
        merged[step.name] = Step(step.name, step.technique, settings, reads, candidate=step.candidate)
        baseline = step.name if step.baseline else baseline
        source = step.name if step.source or step.baseline else source
    return list(merged.values()), baseline


def _values(settings: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    return {name: facts[value] if isinstance(value, Fact) else value for name, value in settings.items()}


def recipe_text(rules: Sequence[Rule], facts: Facts, parts: Parts) -> str:
    """Text of the recipe: data, the rules' steps, answers and a verdict on every candidate.

    Raises ConfigError if no rule makes a candidate.
    """
    steps, baseline = merge_steps(rules, facts, parts.training)
    candidates = [step.name for step in steps if step.candidate]
    if not candidates:
        raise ConfigError(
            "--write",
            "no advice here leads to a smaller model",
            "a model that fits in 4 bits, or answered rows and hours to train a student",
            "--size or --memory higher, --hours, or a smaller model",
        )
    verdict = {
        "mode": "adaptive",
        "inputs": {"baseline": baseline, "candidates": candidates},
        "margins": dict.fromkeys(parts.measures, parts.margin),
    }
    shown = [
        Step("corpus", parts.corpus[0], parts.corpus[1]),
        *steps,
        Step("answers", "evaluate/generation", {"rounds": {"margins": "${steps.verdict.margins}"}}),
        Step("verdict", "evaluate/paired", verdict),
    ]
    option, model = parts.model
    groups = [f"/model@models.base: {option}", *(_option(step) for step in shown), "_self_"]
    lines = [
        "# @package _global_",
        f"# {parts.comment}",
        "defaults: [",
        *_wrapped(groups),
        f"name: {parts.name}",
        *([f"models: {{base: {flow(dict(model))}}}"] if model else []),
        "steps:",
    ]
    for step in shown:
        content = ({"inputs": dict(step.reads)} if step.reads else {}) | dict(step.settings)
        if content:
            lines.append(f"  {step.name}: {flow(content)}")
    return "\n".join(lines) + "\n"


def _option(step: Step) -> str:
    stage, _, technique = step.technique.partition("/")
    return f"/{stage}@steps.{step.name}: {technique}"


def _wrapped(groups: Sequence[str]) -> list[str]:
    """Join the entries of a flow list, on indented lines of at most `WIDTH` characters."""
    lines = ["  "]
    for number, group in enumerate(groups):
        text = group + ("]" if number == len(groups) - 1 else ",")
        if len(lines[-1]) + len(text) > WIDTH:
            lines.append("  ")
        lines[-1] += text if lines[-1] == "  " else f" {text}"
    return lines


def check_recipe(name: str, text: str) -> None:
    """Raise the planner's errors for a recipe that would not plan."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe" / f"{name}.yaml"
        file.parent.mkdir()
        file.write_text(text, encoding="utf-8")
        build_plan(compose_recipe(name, [f"hydra.searchpath=[file://{folder}]"]).recipe)
