"""Content of dvc.yaml: a stage for each step of the tracked recipes, metrics and plots."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flows.planning.steps import Plan, Step
from tasks.shared.store.keys import PROJECT, code_files
from tasks.shared.technique import Kind

METRICS = {Kind.VERDICT: "metrics.json"}
"""File of figures by kind, for `dvc metrics diff`."""


def stage_name(recipe: str, step: str) -> str:
    """Name of a step's DVC stage; names of recipes and steps hold no hyphen."""
    return f"{recipe}-{step}"


def split_stage(stage: str) -> tuple[str, str]:
    """Recipe and step of a DVC stage."""
    recipe, _, step = stage.partition("-")
    return recipe, step


def view_folder(recipe: str, step: str) -> str:
    """Folder of a step's artifact for DVC and people, relative to the project."""
    return f"artifacts/{recipe}/{step}"


def dvc_stage(plan: Plan, step: Step) -> dict[str, Any]:
    """Return a stage of dvc.yaml: its command, dependencies, params and outputs.

    Dependencies are code, user files and inputs; params are the step's own settings and source models.
    """
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
    """User files and folders that decide the result: named by settings, or models by path.

    Paths are relative inside the project, absolute elsewhere.  Models from a hub or a package are excluded; their revision or
    digest is in params.
    """
    code = code_files(step.module)
    models = [Path(plan.sources[name].settings.path) for name in step.needs if name in plan.sources]
    named = [*step.files(), *(path for path in models if path.parts)]
    # Keeps symbolic links, which may be redirected.
    paths = [Path(os.path.normpath(PROJECT / path.expanduser())) for path in named]
    found = [path for path in paths if not any(file.is_relative_to(path) for file in code)]
    inside = [path.relative_to(PROJECT).as_posix() for path in found if path.is_relative_to(PROJECT)]
    return [*sorted(set(inside)), *sorted({str(path) for path in found if not path.is_relative_to(PROJECT)})]


def dvc_yaml(plans: Sequence[Plan]) -> dict[str, Any]:
    """Return the content of dvc.yaml: a stage per step, and the metrics and plots of stages."""
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
    """Yield the plots that techniques declare, each for one step.

    A plot compares two runs of a step, never two steps.
    """
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
