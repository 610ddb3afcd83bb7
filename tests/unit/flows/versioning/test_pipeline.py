"""dvc.yaml: the user's own files and models are deps, and what is compared is declared."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.planning.plan import build_plan
from flows.versioning.pipeline import dvc_stage, dvc_yaml, split_stage, stage_name, user_files
from tasks.shared.store.keys import PROJECT
from tests.tiny_llama import build_model, save_tiny

BUILT_IN = PROJECT / "tasks/curate/shop/knowledge"


def recipe(model: Path | None = None, **settings: Any) -> dict[str, Any]:
    steps: dict[str, Any] = {"corpus": {"_target_": "tasks.curate.support.Support", **settings}}
    if model is not None:
        steps["slim"] = {
            "_target_": "tasks.prune.depth.Depth",
            "inputs": {"model": "models.big", "calibration": "corpus"},
        }
    return {"name": "mine", "seed": 0, "models": {"big": {"path": str(model)}} if model else {}, "steps": steps}


def test_files_outside_the_project_are_absolute_deps(tmp_path: Path) -> None:
    shutil.copytree(BUILT_IN, tmp_path / "knowledge")
    plan = build_plan(recipe(knowledge=str(tmp_path / "knowledge")))
    stage = dvc_stage(plan, plan.steps[0])
    assert str(tmp_path / "knowledge") in stage["deps"]
    assert not any("knowledge" in name for name in stage["params"])


def test_files_inside_the_project_are_relative_deps() -> None:
    plan = build_plan(recipe(knowledge="tasks/../tasks/curate/shop/knowledge"))
    assert user_files(plan, plan.steps[0]) == [], "its files are among the code's already"
    assert user_files(build_plan(recipe()), build_plan(recipe()).steps[0]) == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return Path(save_tiny(folder, build_model()))


def test_a_model_given_by_its_path_is_a_dep_of_the_steps_that_read_it(model: Path) -> None:
    plan = build_plan(recipe(model))
    assert user_files(plan, plan.step("slim")) == [str(model)]
    assert user_files(plan, plan.step("corpus")) == []
    stage = dvc_stage(plan, plan.step("slim"))
    assert stage["deps"][-1] == "artifacts/mine/corpus/out" and "recipes.mine.models.big" in stage["params"]


def test_plots_and_metrics_name_existing_outputs_by_stage(model: Path) -> None:
    content = dvc_yaml([build_plan(recipe(model))])
    [(name, plot)] = content["plots"][0].items()
    assert name == "mine-slim-influence" and plot["title"] == "mine: influence of slim"
    assert plot["y"] == {"artifacts/mine/slim/out/influence.csv": ["influence"]}
    assert "metrics" not in content
    assert "&id" not in yaml.safe_dump(content), "no aliases: people read this file"


def test_a_stages_name_tells_recipe_and_step() -> None:
    assert split_stage(stage_name("support_bot", "slim_2")) == ("support_bot", "slim_2")


def test_only_tables_that_a_technique_writes_are_plotted(model: Path) -> None:
    steps = recipe(model)
    inputs = {"model": "models.big", "data": ["corpus"]}
    steps["steps"]["words"] = {"_target_": "tasks.prune.vocabulary.Vocabulary", "inputs": inputs}
    steps["steps"]["narrow"] = {
        "_target_": "tasks.prune.weight_selection.WeightSelection",
        "inputs": {"model": "words"},
    }
    steps["steps"]["tuned"] = {"_target_": "tasks.distill.sft.SFT", "inputs": {"model": "slim", "data": "corpus"}}
    plots = [name for plot in dvc_yaml([build_plan(steps)])["plots"] for name in plot]
    assert sorted(plots) == ["mine-slim-influence", "mine-tuned-loss"]
