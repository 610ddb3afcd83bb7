"""What dvc.yaml says: a stage for every step of the tracked recipes, and which files to compare."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flows.planning.steps import Plan, Step
from tasks.shared.store.keys import PROJECT, code_files
from tasks.shared.technique import Kind

METRICS = {Kind.VERDICT: "metrics.json"}
"""By kind: the file of figures that `dvc metrics diff` compares."""


def stage_name(recipe: str, step: str) -> str:
    """The DVC stage of a step.  Neither name can hold a hyphen."""
    return f"{recipe}-{step}"


def split_stage(stage: str) -> tuple[str, str]:
    """Recipe and step of a DVC stage."""
    recipe, _, step = stage.partition("-")
    return recipe, step


def view_folder(recipe: str, step: str) -> str:
    """Where DVC and people find a step's artifact, below the project's folder."""
    return f"artifacts/{recipe}/{step}"


def dvc_stage(plan: Plan, step: Step) -> dict[str, Any]:
    """One stage of dvc.yaml: the command; code, the user's files and inputs as deps; exactly the step's own params; the artifact."""
    models = [name for name in step.needs if name in plan.sources]
    folder = view_folder(plan.recipe, step.name)
    return {
        "cmd": f"python -m flows.stage {plan.recipe} {step.name}",
        "deps": [
            *(file.relative_to(PROJECT).as_posix() for file in code_files(step.module)),
            *user_files(plan, step),
            *(f"{view_folder(plan.recipe, name)}/out" for name in step.needs if name not in plan.sources),
        ],
        "params": [f"recipes.{plan.recipe}.{key}" for key in (f"steps.{step.name}", "seed", *models)],
        "outs": [f"{folder}/out", f"{folder}/manifest.json"],
    }


def user_files(plan: Plan, step: Step) -> list[str]:
    """Files and folders outside the graph that decide the result: those that settings name, and models given by a path.

    Relative inside the project, absolute elsewhere.  A model from a hub or a package is not among them: its revision or
    digest is in params.
    """
    code = code_files(step.module)
    models = [Path(plan.sources[name].settings.path) for name in step.needs if name in plan.sources]
    named = [*step.files(), *(path for path in models if path.parts)]
    paths = [
        Path(os.path.normpath(PROJECT / path.expanduser())) for path in named
    ]  # symbolic links stay: they may be moved
    found = [path for path in paths if not any(file.is_relative_to(path) for file in code)]
    inside = [path.relative_to(PROJECT).as_posix() for path in found if path.is_relative_to(PROJECT)]
    return [*sorted(set(inside)), *sorted({str(path) for path in found if not path.is_relative_to(PROJECT)})]


def dvc_yaml(plans: Sequence[Plan]) -> dict[str, Any]:
    """The whole dvc.yaml: an explicit stage per step, metrics and plots where a stage writes them."""
    content: dict[str, Any] = {
        "stages": {stage_name(plan.recipe, step.name): dvc_stage(plan, step) for plan in plans for step in plan.steps}
    }
    if metrics := list(_metrics(plans)):
        content["metrics"] = metrics
    if plots := list(_plots(plans)):
        content["plots"] = plots
    return content


def _metrics(plans: Sequence[Plan]) -> Iterator[str]:
    for plan in plans:
        for step in plan.steps:
            if step.kind in METRICS:
                yield f"{view_folder(plan.recipe, step.name)}/out/{METRICS[step.kind]}"


def _plots(plans: Sequence[Plan]) -> Iterator[dict[str, Any]]:
    """Yield the plots that techniques declare, one step each: two runs of a step are compared, never two steps."""
    for plan in plans:
        for step in plan.steps:
            for plot in step.technique.spec.plots:
                file = f"{view_folder(plan.recipe, step.name)}/out/{plot.file}"
                yield {
                    f"{stage_name(plan.recipe, step.name)}-{plot.title}": {
                        "x": plot.x,
                        "y": {file: list(plot.y)},
                        "x_label": plot.x_label,
                        "y_label": plot.y_label,
                        "template": plot.template,
                        "title": f"{plan.recipe}: {plot.title} of {step.name}",
                    }
                }
