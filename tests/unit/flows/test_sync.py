"""params.yaml and dvc.yaml say exactly what the keys read."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from flows.planning.plan import build_plan
from flows.versioning import files as generated
from flows.versioning import params
from flows.versioning.files import expected_files
from flows.versioning.params import recipe_of, recipe_params
from flows.versioning.pipeline import dvc_yaml
from tasks.shared.errors import ConfigError, MachineError


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
    text = yaml.safe_dump(recipe_params(plan))
    assert build_plan(recipe_of("trial", yaml.safe_load(text))).steps == plan.steps


def test_a_stage_depends_on_code_inputs_and_its_own_params(recipe: dict[str, Any]) -> None:
    stages = dvc_yaml([build_plan(recipe)])["stages"]
    assert set(stages) == {"trial-corpus", "trial-other"}
    stage = stages["trial-corpus"]
    assert stage["cmd"] == "python -m flows.stage trial corpus"
    assert "tasks/curate/support.py" in stage["deps"]
    assert stage["params"] == ["recipes.trial.steps.corpus", "recipes.trial.seed"]
    assert stage["outs"] == ["artifacts/trial/corpus/out", "artifacts/trial/corpus/manifest.json"]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both files in a folder of the test's own."""
    for module in (generated, params):
        monkeypatch.setattr(module, "PARAMS", tmp_path / "params.yaml")
    monkeypatch.setattr(generated, "PROJECT", tmp_path)
    monkeypatch.setattr(generated, "DVC", tmp_path / "dvc.yaml")
    monkeypatch.setattr(generated, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(generated, "BEFORE", tmp_path / "before.yaml")
    return tmp_path


def test_writing_is_idempotent_and_a_stale_file_is_seen(recipe: dict[str, Any], files: Path) -> None:
    plan = build_plan(recipe)
    assert generated.update_recipe(plan).files == ("params.yaml", "dvc.yaml")
    assert not generated.update_recipe(plan)
    recipe["steps"]["corpus"]["train_size"] = 51
    assert generated.update_recipe(build_plan(recipe)).files == ("params.yaml",)
    expected = expected_files(params.tracked_params())
    assert all(path.read_text() == text for path, text in expected.items())


def test_another_recipes_part_is_left_as_it_is(recipe: dict[str, Any], files: Path) -> None:
    generated.update_recipe(build_plan(recipe))
    first = params.tracked_params()["trial"]
    other = recipe | {"name": "second", "seed": 4}
    generated.update_recipe(build_plan(other))
    assert params.tracked_params() == {"trial": first, "second": recipe_params(build_plan(other))}
    stages = yaml.safe_load((files / "dvc.yaml").read_text())["stages"]
    assert list(stages) == ["trial-corpus", "trial-other", "second-corpus", "second-other"]


def test_what_changes_is_said_and_the_former_file_kept(recipe: dict[str, Any], files: Path) -> None:
    generated.update_recipe(build_plan(recipe))
    former = (
        (files / "params.yaml").read_text().replace("train_size: 50", "train_size: 70").replace("seed: 3", "seed: 9")
    )
    (files / "params.yaml").write_text(former)
    update = generated.update_recipe(build_plan(recipe))
    assert update.changes == ("seed: 9 -> 3", "steps.corpus.train_size: 70 -> 50")
    assert (files / "before.yaml").read_text() == former
    said = update.describe(most=1)
    assert "seed: 9 -> 3" in said and "and 1 more" in said and "before.yaml" in said and "runtime.sync=false" in said


def test_steps_that_come_and_go_are_said(recipe: dict[str, Any]) -> None:
    before = {"steps": {"gone": {"a": 1}, "stays": {"list": [1], "empty": {}}}}
    now = {"steps": {"stays": {"list": [1, 2], "empty": {}}, "new": {"b": None}}}
    assert list(params.changed_settings(before, now)) == [
        "steps.gone.a: 1 -> removed",
        "steps.stays.list: [1] -> [1, 2]",
        "steps.new.b: new, None",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"recipes:\n\t- x", "line 2"),
        (b"\xff\xfe", "no UTF-8"),
        (b"- a list", "no mapping"),
        (b"recipes: {trial: {steps: {}}}", "does not hold recipes"),
        (b"recipes:\n=======\n>>>>>>> theirs\n", "line 3: a merge conflict"),
    ],
)
def test_a_broken_file_is_a_message_and_stays(recipe: dict[str, Any], files: Path, content: bytes, words: str) -> None:
    (files / "params.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        generated.update_recipe(build_plan(recipe))
    assert (files / "params.yaml").read_bytes() == content and not (files / "dvc.yaml").exists()


def test_an_empty_file_tracks_nothing(files: Path) -> None:
    assert params.tracked_params() == {}
    (files / "params.yaml").touch()
    assert params.tracked_params() == {}


def test_a_lock_held_too_long_is_a_message(files: Path) -> None:
    with (
        FileLock(generated.LOCK),
        pytest.raises(MachineError, match="held by another run"),
        generated.locked(patience_s=0.1),
    ):
        pass
