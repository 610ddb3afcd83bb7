"""Models are asked one by one, each once for the same weights and questions."""

from dataclasses import replace
from pathlib import Path

from tasks.evaluate.models_under_test.isolated_runs import Workspace, ask_each, other_batch
from tasks.evaluate.models_under_test.model_under_test import ModelUnderTest, open_model
from tasks.shared.gguf.writer import write_gguf
from tasks.shared.store.keys import Digests
from tasks.shared.technique import Artifact, Kind
from tests.tiny_llama import build_model, empty_run, save_tiny


def told(subject: ModelUnderTest, plan: tuple[str, ...], workspace: Workspace) -> str:
    (workspace.scratch.parents[1] / f"asked {subject.name}").touch()
    return f"{subject.engine} {len(plan)}"


def test_an_export_is_asked_once_whether_by_its_folder_or_by_its_file(tmp_path: Path) -> None:
    files = [tmp_path / name / "model.gguf" for name in ("one", "other")]
    for seed, file in enumerate(files):
        file.parent.mkdir()
        write_gguf(save_tiny(tmp_path / f"source{seed}", build_model(seed=seed)), file, "f16")
    (files[0].parent / "parity.json").write_text("{}")  # an export's folder holds more than its weights
    digests = Digests(tmp_path / "digests.json")

    def subject(name: str, kind: Kind, path: Path) -> ModelUnderTest:
        return open_model(Artifact(name, kind, path, digests.tree(path)), "candidate")

    folder, file = subject("step", Kind.ENGINE, files[0].parent), subject("file", Kind.MODEL, files[0])
    other = subject("other", Kind.ENGINE, files[1].parent)
    assert folder.digest != file.digest and folder.content == file.content == file.digest != other.content
    _, run = empty_run(tmp_path)
    run = replace(run, prediction_cache=tmp_path / "cache")
    subjects = [folder, file, other]
    found = ask_each(subjects, dict.fromkeys(["step", "file", "other"], ("?",)), told, str, run)
    assert set(found.values()) == {"llama.cpp 1"}
    assert sorted(path.name for path in run.scratch.glob("asked *")) == ["asked other", "asked step"]


def test_asked_again_the_batches_differ() -> None:
    assert [other_batch(64, again, 900) for again in range(4)] == [64, 32, 16, 8]
    assert other_batch(64, 0, 30) == 64 and other_batch(64, 1, 30) == 15
    assert [other_batch(1, again) for again in range(3)] == [1, 2, 3]
