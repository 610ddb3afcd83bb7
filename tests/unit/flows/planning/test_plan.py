"""The planner: order, and every mistake found at once before anything runs."""

import copy
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from flows.planning.plan import build_plan
from flows.versioning.params import recipe_of, recipe_params
from tasks.prune.depth import Depth
from tasks.shared.errors import ErrorList
from tasks.shared.technique import Spec
from tests.tiny_files import bare_folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return bare_folder(tmp_path / "model")


@pytest.fixture
def recipe(model: Path) -> dict[str, Any]:
    return {
        "name": "trial",
        "seed": 0,
        "models": {"teacher": {"path": str(model)}},
        "steps": {
            # the later steps first: the planner orders them, not the file
            "student": {"_target_": "tasks.distill.sft.SFT", "inputs": {"model": "slim", "data": "corpus"}},
            "slim": {
                "_target_": "tasks.prune.depth.Depth",
                "inputs": {"model": "models.teacher", "calibration": "corpus"},
                "ratio": 0.5,
            },
            "corpus": {"_target_": "tasks.curate.support.Support", "train_size": 400},
        },
    }


def refused(recipe: dict[str, Any]) -> str:
    with pytest.raises(ErrorList) as caught:
        build_plan(recipe)
    return str(caught.value)


def test_inputs_come_first(recipe: dict[str, Any]) -> None:
    plan = build_plan(recipe)
    assert [step.name for step in plan.steps] == ["corpus", "slim", "student"]
    assert plan.step("slim").settings()["ratio"] == 0.5


def test_unknown_input_names_the_nearest(recipe: dict[str, Any]) -> None:
    recipe["steps"]["student"]["inputs"]["model"] = "slm"
    assert "did you mean 'slim'" in refused(recipe)


def test_cycle_is_shown(recipe: dict[str, Any]) -> None:
    recipe["steps"]["slim"]["inputs"]["model"] = "student"
    message = refused(recipe)
    assert "cycle" in message and "slim" in message and "student" in message


def test_wrong_kind_says_what_fits(recipe: dict[str, Any]) -> None:
    recipe["steps"]["slim"]["inputs"]["model"] = "corpus"
    assert "'corpus' is a corpus" in refused(recipe)


def test_node_without_technique_says_what_to_type(recipe: dict[str, Any]) -> None:
    del recipe["steps"]["slim"]["_target_"]
    assert "+<stage>@steps.slim=<technique>" in refused(recipe)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "tasks.shared.formats.rows.Row",
        "tasks.prune.nothing.Nothing",
        "subprocess.Popen.x.y",
        "flows.planning.plan.x.Plan",
    ],
)
def test_foreign_targets_are_never_imported(recipe: dict[str, Any], target: str) -> None:
    recipe["steps"]["slim"]["_target_"] = target
    assert "_target_" in refused(recipe)


def test_misspelled_setting_names_the_nearest(recipe: dict[str, Any]) -> None:
    recipe["steps"]["slim"]["ratoi"] = 0.4
    assert "did you mean steps.slim.ratio?" in refused(recipe)


@pytest.mark.parametrize(
    ("settings", "where", "fix"),
    [
        ({"budget": {"money": 5}}, "budget.money: no prices", "prices: {input"),
        ({"vote": True}, "vote: 2 samples", "samples: 5"),
        ({"base_url": "localhost:80/v1", "model": "m"}, "base_url: 'localhost:80/v1' is not a URL", "http://localhost:80/v1"),
        ({"base_url": "http://localhost:80/v1"}, "model: empty, but base_url is set", "GET /models"),
        ({"model": "gpt"}, "model: 'gpt', but base_url is empty", "set base_url"),
        ({}, "inputs.teacher: missing, and base_url is empty", "inputs.teacher, or base_url"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_name_their_step(
    recipe: dict[str, Any], settings: dict[str, Any], where: str, fix: str
) -> None:
    recipe["steps"]["asked"] = {"_target_": "tasks.traces.openai.OpenAI", "inputs": {"prompts": "corpus"}, **settings}
    message = refused(recipe)
    assert message.startswith(f"steps.asked.{where}") and fix in message


CLASS_VARIABLES = {"spec", *(field.name for field in fields(Spec))}


@pytest.mark.parametrize("name", ["spec", "specs", "unkeyed", "scales", "ports"])
def test_what_is_no_setting_is_never_suggested(recipe: dict[str, Any], name: str) -> None:
    for step in ("slim", "student"):
        recipe["steps"][step][name] = 1
    message = refused(recipe)
    assert f"Depth has no setting '{name}'" in message and f"SFT has no setting '{name}'" in message
    offered = set(re.findall(r"\w+", " ".join(re.findall(r"(?:wanted:|did you mean) (.*)", message))))
    assert "ratio" in offered and not offered & CLASS_VARIABLES, "neither listed nor suggested"


PACKED = {"_target_": "tasks.quantize.rtn.RTN", "inputs": {"model": "slim"}}


@pytest.mark.parametrize(
    ("target", "more"),
    [
        ("tasks.prune.depth.Depth", {"calibration": "corpus"}),
        ("tasks.prune.vocabulary.Vocabulary", {"data": ["corpus"]}),
        ("tasks.prune.weight_selection.WeightSelection", {}),
        ("tasks.quantize.gptq.GPTQ", {"calibration": "corpus"}),
        ("tasks.distill.sft.SFT", {"data": "corpus"}),
    ],
)
def test_packed_weights_are_refused_where_dense_ones_are_needed(
    recipe: dict[str, Any], target: str, more: dict[str, Any]
) -> None:
    recipe["steps"]["int4"] = PACKED
    recipe["steps"]["next"] = {"_target_": target, "inputs": {"model": "int4", **more}}
    message = refused(recipe)
    assert "int4, whose weights are packed" in message and "fix: steps.next.inputs.model=slim" in message


def test_packed_weights_may_be_exported_and_measured(recipe: dict[str, Any]) -> None:
    recipe["steps"]["int4"] = PACKED
    recipe["steps"]["file"] = {"_target_": "tasks.export.gguf.Gguf", "inputs": {"model": "int4"}}
    build_plan(recipe)


def test_a_packed_model_of_the_user_s_is_refused_too(recipe: dict[str, Any], model: Path) -> None:
    (model / "config.json").write_text('{"quantization_config": {"quant_method": "x"}}')
    assert "models.teacher, whose weights are quantized already (x)" in refused(recipe)


def test_a_step_that_keeps_the_format_passes_on_that_of_its_model(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = replace(Depth.spec, accepts="any", gives="same")
    monkeypatch.setattr(Depth, "spec", kept)
    recipe["steps"]["int4"] = {**PACKED, "inputs": {"model": "models.teacher"}}
    recipe["steps"]["slim"]["inputs"]["model"] = "int4"
    message = refused(recipe)
    assert "slim, whose weights are packed" in message and "steps.student.inputs.model=models.teacher" in message


def test_value_out_of_range(recipe: dict[str, Any]) -> None:
    recipe["steps"]["slim"]["ratio"] = 1.5
    assert "steps.slim.ratio" in refused(recipe)


def test_unknown_port_and_missing_port(recipe: dict[str, Any]) -> None:
    recipe["steps"]["student"]["inputs"] = {"modle": "slim", "data": "corpus"}
    message = refused(recipe)
    assert "did you mean 'model'" in message and "steps.student.inputs.model: missing" in message


def test_missing_model_file(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["models"]["teacher"]["path"] = str(tmp_path / "absent")
    assert "no such file or folder" in refused(recipe)


def test_pickled_weights_are_refused(recipe: dict[str, Any], model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "pickles" in refused(recipe)


def test_all_mistakes_are_reported_together(recipe: dict[str, Any]) -> None:
    broken = copy.deepcopy(recipe)
    broken["steps"]["slim"]["ratoi"] = 1
    broken["steps"]["student"]["inputs"]["data"] = "corpse"
    broken["steps"]["corpus"]["train_size"] = -1
    broken["steps"]["extra"] = {"ratio": 1}
    broken["models"]["other"] = {"path": "/nowhere/at/all"}
    with pytest.raises(ErrorList) as caught:
        build_plan(broken)
    assert len(caught.value.errors) >= 5


@pytest.mark.parametrize("name", ["../evil", "Bad-Name", "", "a" * 60])
def test_names_become_paths_and_are_checked(recipe: dict[str, Any], name: str) -> None:
    recipe["steps"][name] = recipe["steps"].pop("corpus")
    recipe["steps"]["slim"]["inputs"]["calibration"] = name
    recipe["steps"]["student"]["inputs"]["data"] = name
    assert "lower-case letters" in refused(recipe)


def test_planning_imports_neither_torch_nor_prefect() -> None:
    code = """
import sys, flows.planning.plan
from flows.planning.config import compose_recipe
recipe = compose_recipe("support_bot").recipe
try:
    flows.planning.plan.build_plan(recipe)
except flows.planning.plan.ErrorList:
    pass  # the embedded model may not be installed here
print({"torch", "prefect", "transformers", "mlflow"} & set(sys.modules))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout.strip() == "set()"


def test_a_step_may_have_a_seed_of_its_own(recipe: dict[str, Any]) -> None:
    recipe["steps"]["again"] = {**recipe["steps"]["student"], "seed": 7}
    plan = build_plan(recipe)
    assert [plan.seed_of(plan.step(name)) for name in ("student", "again")] == [0, 7]
    again, student = (plan.step(name) for name in ("again", "student"))
    assert again.settings() == student.settings(), "it is no setting of the technique"
    assert recipe_of("trial", recipe_params(plan))["steps"]["again"]["seed"] == 7, "dvc repro runs it with the same"
    recipe["steps"]["again"]["seed"] = "seven"
    assert "steps.again.seed" in refused(recipe)
