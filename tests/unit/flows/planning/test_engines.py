"""Models that no engine of a step can run are refused at plan time."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.planning.plan import build_plan
from tasks.export.onnx import Onnx
from tasks.export.openvino import OpenVino
from tasks.shared.engines import registry
from tasks.shared.engines.protocol import Capabilities
from tasks.shared.errors import ErrorList
from tests.optional_packages import missing_extra
from tests.tiny_files import bare_folder, bare_gguf


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    dense, packed, file = tmp_path / "dense", tmp_path / "packed", tmp_path / "served.gguf"
    bare_folder(dense)
    config = bare_folder(packed) / "config.json"
    quantization = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": quantization}))
    bare_gguf(file)
    models = {path.stem: {"path": str(path)} for path in (dense, packed, file)}
    corpus = {"_target_": "tasks.curate.support.Support", "train_size": 400}
    int4 = {"_target_": "tasks.quantize.rtn.RTN", "inputs": {"model": "models.dense"}}
    export = {"_target_": "tasks.export.gguf.Gguf", "inputs": {"model": "models.dense"}}
    return {"name": "trial", "seed": 0, "models": models, "steps": {"corpus": corpus, "int4": int4, "exported": export}}


def problems(
    recipe: dict[str, Any], technique: str, baseline: str, candidates: tuple[str, ...] = (), **settings: Any
) -> str:
    inputs: dict[str, Any] = {"baseline": baseline, "candidates": list(candidates), "data": "corpus"}
    step = {"_target_": f"tasks.evaluate.{technique}", "inputs": inputs, **settings}
    try:
        build_plan({**recipe, "steps": {**recipe["steps"], "measured": step}})
    except ErrorList as error:
        return str(error)
    return ""


@pytest.mark.parametrize("baseline", ["models.served", "exported"])
def test_a_gguf_baseline_needs_llama_cpp_to_be_timed(recipe: dict[str, Any], baseline: str) -> None:
    found = problems(recipe, "runtime.Runtime", baseline, engines=["transformers"])
    assert f"steps.measured.inputs.baseline: {baseline}, whose weights are gguf: no engine runs them" in found
    assert "transformers does not run gguf weights; llama.cpp is not among transformers" in found
    assert not problems(recipe, "runtime.Runtime", baseline, engines=["transformers", "llama.cpp"])
    assert not problems(recipe, "runtime.Runtime", baseline)


@pytest.mark.parametrize("baseline", ["models.packed", "int4"])
def test_packed_weights_cannot_be_timed_in_llama_cpp_alone(recipe: dict[str, Any], baseline: str) -> None:
    assert f"{baseline}, whose weights are packed" in problems(
        recipe, "runtime.Runtime", baseline, engines=["llama.cpp"]
    )
    assert not problems(recipe, "runtime.Runtime", "models.dense", (baseline,), engines=["llama.cpp"])
    assert not problems(recipe, "runtime.Runtime", baseline)


def test_every_form_has_an_engine_for_answers_labels_and_distributions(recipe: dict[str, Any]) -> None:
    models = ("models.packed", "models.served", "int4", "exported")
    for technique in ("generation.Generation", "divergence.Divergence", "perplexity.Perplexity"):
        assert not problems(recipe, technique, "models.dense", models)
    assert not problems(recipe, "generation.Generation", "models.dense", models, stop=["\n\n"])


def test_versions_of_optional_engines_are_in_the_key_of_steps_that_query_them(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    graphs = {"onnxruntime": Onnx, "openvino": OpenVino}
    nf4 = bare_folder(tmp_path / "nf4") / "config.json"
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    nf4.write_text(json.dumps(json.loads(nf4.read_text()) | {"quantization_config": quantization}))
    models = {**recipe["models"], "nf4": {"path": str(nf4.parent)}}

    def versions(candidate: str) -> set[str]:
        inputs = {"baseline": "models.dense", "candidates": [candidate], "data": "corpus"}
        measured = {"_target_": "tasks.evaluate.generation.Generation", "inputs": inputs, "label": "written"}
        steps = {**recipe["steps"], "measured": measured}
        if candidate in graphs:
            cls = graphs[candidate]
            steps[candidate] = {"_target_": f"{cls.__module__}.{cls.__name__}", "inputs": {"model": "models.dense"}}
        return set(build_plan({**recipe, "models": models, "steps": steps}).step("measured").identity(0)["versions"])

    usual = versions("int4")
    assert "onnxruntime" not in usual and versions("exported") == usual
    assert versions("models.nf4") == {*usual, "bitsandbytes"}
    for package, technique in graphs.items():
        if not missing_extra(technique):  # without its extra the plan is refused
            assert versions(package) == {*usual, package}


def test_a_capability_that_is_missing_is_named(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    blind = Capabilities(reads=("dense", "packed"), dequantizes=("gguf",), stop=True)
    monkeypatch.setattr(registry.TRANSFORMERS, "capabilities", blind)
    found = problems(recipe, "divergence.Divergence", "models.dense", ("exported",))
    assert (
        "inputs.baseline: models.dense, whose weights are dense: no engine runs them for this step, which needs distribution"
        in found
    )
    assert "inputs.candidates: exported" in found and "transformers lacks distribution" in found
    assert "which needs labels" in problems(recipe, "generation.Generation", "int4", measures=["label"])
    assert not problems(recipe, "generation.Generation", "int4", measures=["label"], label="written")


@pytest.mark.parametrize(("target", "port"), [("traces.openai.OpenAI", "teacher"), ("evaluate.judge.Judge", "judge")])
def test_a_teacher_or_judge_on_this_machine_is_a_gguf(recipe: dict[str, Any], target: str, port: str) -> None:
    answers = {"_target_": "tasks.evaluate.generation.Generation", "inputs": {"baseline": "models.dense"}}
    read = {"prompts": "corpus"} if port == "teacher" else {"answers": "answers"}

    def refused(name: str, **settings: str) -> str:
        step = {"_target_": f"tasks.{target}", "inputs": {**read, port: name}, **settings}
        try:
            build_plan({**recipe, "steps": {**recipe["steps"], "answers": answers, "asking": step}})
        except ErrorList as error:
            return str(error)
        return ""

    assert f"steps.asking.inputs.{port}: models.dense, whose weights are dense: no engine runs them" in refused(
        "models.dense"
    )
    assert "llama.cpp does not run packed weights" in refused("int4")
    assert not refused("models.served") and not refused("exported")
    assert not refused("models.dense", base_url="http://localhost:80/v1", model="m"), "the endpoint answers instead"
    served = Path(recipe["models"]["served"]["path"])
    served.rename(Path(recipe["models"]["dense"]["path"]) / served.name)
    del recipe["models"]["served"]
    assert not refused("models.dense"), "a GGUF beside other weights"
