"""params.yaml and dvc.yaml say exactly what the keys read."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import params, sync
from flows.params import recipe_of, recipe_params
from flows.plan import build_plan
from flows.sync import dvc_yaml, expected_files


@pytest.fixture
def recipe() -> dict[str, Any]:
    return {
        "name": "trial",
        "seed": 3,
        "models": {},
        "steps": {
            "corpus": {"_target_": "tasks.curate.support.Support", "train_size": 50},
            "other": {"_target_": "tasks.curate.support.Support", "train_size": 60},
        },
    }


def test_params_rebuild_the_same_plan(recipe: dict[str, Any]) -> None:
    plan = build_plan(recipe)
    text = yaml.safe_dump(recipe_params(recipe, plan))
    assert build_plan(recipe_of("trial", yaml.safe_load(text))).steps == plan.steps


def test_a_stage_depends_on_code_inputs_and_its_own_params(recipe: dict[str, Any]) -> None:
    stages = dvc_yaml([build_plan(recipe)])["stages"]
    assert set(stages) == {"trial-corpus", "trial-other"}
    stage = stages["trial-corpus"]
    assert stage["cmd"] == "python -m flows.stage trial corpus"
    assert "tasks/curate/support.py" in stage["deps"]
    assert stage["params"] == ["recipes.trial.steps.corpus", "recipes.trial.seed"]
    assert stage["outs"] == ["artifacts/trial/corpus/out", "artifacts/trial/corpus/manifest.json"]


def test_writing_is_idempotent_and_a_stale_file_is_seen(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "PARAMS", tmp_path / "params.yaml")
    monkeypatch.setattr(params, "PARAMS", tmp_path / "params.yaml")
    monkeypatch.setattr(sync, "DVC", tmp_path / "dvc.yaml")
    monkeypatch.setattr(sync, "LOCK", tmp_path / "lock")
    plan = build_plan(recipe)
    assert sync.update_recipe(recipe, plan) == ["params.yaml", "dvc.yaml"]
    assert sync.update_recipe(recipe, plan) == []
    recipe["steps"]["corpus"]["train_size"] = 51
    assert sync.update_recipe(recipe, build_plan(recipe)) == ["params.yaml"]
    files = expected_files(params.tracked_params())
    assert all(path.read_text() == text for path, text in files.items())
