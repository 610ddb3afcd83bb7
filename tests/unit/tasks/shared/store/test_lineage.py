"""The nearest ancestor among given names, found through the manifests of a store or of a recipe's folder."""

import json
from pathlib import Path

import pytest

from tasks.shared.store.lineage import made_from
from tasks.shared.technique import Artifact, Kind

NAMES = ("tuned", "slim", "student", "gguf", "teacher")
CHAIN = {
    "traces": ("traces", {"teacher": {"models.teacher": "d-teacher"}, "prompts": {"corpus": "d-corpus"}}),
    "tuned": ("model", {"data": {"traces": "d-traces"}, "model": {"models.teacher": "d-teacher"}}),
    "slim": ("model", {"calibration": {"corpus": "d-corpus"}, "model": {"tuned": "d-tuned"}}),
    "student": ("model", {"data": {"traces": "d-traces"}, "model": {"slim": "d-slim"}}),
    "gguf": ("engine", {"calibration": {"corpus": "d-corpus"}, "model": {"student": "d-student"}}),
    "mixed": ("model", {"models": {"slim": "d-slim", "student": "d-student"}}),
}


def write(place: Path, kind: str, inputs: object, output: str) -> None:
    (place / "out").mkdir(parents=True)
    (place / "manifest.json").write_text(json.dumps({"kind": kind, "inputs": inputs, "output": output}), "utf-8")


@pytest.fixture(params=["store", "recipe"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """All steps of the chain, where a run reads them, or where a recipe's folder shows them."""
    for step, (kind, inputs) in CHAIN.items():
        place = tmp_path / ".store" / step / f"key-{step}" if request.param == "store" else tmp_path / "bot" / step
        write(place, kind, inputs, f"d-{step}")
    return tmp_path


def artifact(root: Path, step: str) -> Artifact:
    (manifest,) = [*root.glob(f".store/{step}/*/manifest.json"), *root.glob(f"bot/{step}/manifest.json")]
    return Artifact(step, Kind(CHAIN[step][0]), manifest.parent / "out")


def test_a_direct_parent_is_named(root: Path) -> None:
    assert {step: made_from(artifact(root, step), dict.fromkeys(NAMES, "")) for step in ("tuned", "slim", "student", "gguf")} == {
        "tuned": "teacher", "slim": "tuned", "student": "slim", "gguf": "student",
    }  # fmt: skip


def test_a_parent_that_is_not_asked_for_is_passed_over(root: Path) -> None:
    assert made_from(artifact(root, "gguf"), {"tuned": "", "gguf": ""}) == "tuned"
    assert made_from(artifact(root, "gguf"), {"gguf": ""}) == ""


def test_a_model_is_not_made_from_the_teacher_that_answered_its_prompts(root: Path) -> None:
    assert made_from(artifact(root, "student"), {"teacher": ""}) == "teacher", (
        "through slim and tuned, not through traces"
    )
    tuned = next(root.glob("**/tuned/**/manifest.json"))
    tuned.write_text(tuned.read_text("utf-8").replace("models.teacher", "models.base"), "utf-8")
    assert made_from(artifact(root, "student"), {"teacher": ""}) == ""


def test_a_model_of_another_run_that_bears_the_name_is_no_parent(root: Path) -> None:
    assert made_from(artifact(root, "gguf"), {"student": "d-student"}) == "student"
    assert made_from(artifact(root, "gguf"), {"student": "of another run", "slim": "d-slim"}) == "slim"


def test_without_a_port_for_weights_every_model_counts(root: Path) -> None:
    assert made_from(artifact(root, "mixed"), {"tuned": ""}) == "tuned"
    assert made_from(artifact(root, "mixed"), {"student": ""}) == "student"


def test_another_artifact_of_the_parent_s_name_is_not_taken_for_it(root: Path) -> None:
    student = next(root.glob("**/student/**/manifest.json"))
    student.write_text(student.read_text("utf-8").replace('"output": "d-student"', '"output": "made again"'), "utf-8")
    assert made_from(artifact(root, "gguf"), {"student": ""}) == "student", "its name is known from the child"
    assert made_from(artifact(root, "gguf"), {"slim": ""}) == "", "and nothing of what came before"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"inputs": [1]}', '{"inputs": {"model": "x"}}'])
def test_a_source_and_a_foreign_manifest_tell_nothing(tmp_path: Path, content: str) -> None:
    assert made_from(Artifact("base", Kind.MODEL, tmp_path / "model.gguf"), dict.fromkeys(NAMES, "")) == ""
    (tmp_path / "manifest.json").write_text(content, "utf-8")
    assert made_from(Artifact("base", Kind.MODEL, tmp_path / "model.gguf"), dict.fromkeys(NAMES, "")) == ""
