"""Isolated runs: one evaluation per model, cached by weights and plan."""

from dataclasses import replace
from pathlib import Path

from tasks.evaluate.models_under_test.isolated_runs import Resources, evaluate_each, repeat_batch_size
from tasks.evaluate.models_under_test.model_under_test import ModelUnderTest, inspect_model
from tasks.shared.gguf.writer import write_gguf
from tasks.shared.store.keys import Digests
from tasks.shared.technique import Artifact, Kind
from tests.tiny_llama import build_model, empty_run, save_tiny


def told(model: ModelUnderTest, plan: tuple[str, ...], resources: Resources) -> str:
    (resources.scratch.parents[1] / f"asked {model.name}").touch()
    return f"{model.engine} {len(plan)}"


def test_an_export_is_asked_once_whether_by_its_folder_or_by_its_file(tmp_path: Path) -> None:
    files = [tmp_path / name / "model.gguf" for name in ("one", "other")]
    for seed, file in enumerate(files):
        file.parent.mkdir()
        write_gguf(save_tiny(tmp_path / f"source{seed}", build_model(seed=seed)), file, "f16")
    (files[0].parent / "parity.json").write_text("{}")  # an export's folder holds more than its weights
    digests = Digests(tmp_path / "digests.json")

    def model(name: str, kind: Kind, path: Path) -> ModelUnderTest:
        return inspect_model(Artifact(name, kind, path, digests.tree(path)), "candidate")

    folder, file = model("step", Kind.ENGINE, files[0].parent), model("file", Kind.MODEL, files[0])
    other = model("other", Kind.ENGINE, files[1].parent)
    assert folder.digest != file.digest and folder.cache_id == file.cache_id == file.digest != other.cache_id
    _, run = empty_run(tmp_path)
    run = replace(run, prediction_cache=tmp_path / "cache")
    models = [folder, file, other]
    found = evaluate_each(models, dict.fromkeys(["step", "file", "other"], ("?",)), told, str, run)
    assert set(found.values()) == {"llama.cpp 1"}
    assert sorted(path.name for path in run.scratch.glob("asked *")) == ["asked other", "asked step"]


def test_asked_again_the_batches_differ() -> None:
    assert [repeat_batch_size(64, repetition, 900) for repetition in range(4)] == [64, 32, 16, 8]
    assert repeat_batch_size(64, 0, 30) == 64 and repeat_batch_size(64, 1, 30) == 15
    assert [repeat_batch_size(1, repetition) for repetition in range(3)] == [1, 2, 3]
