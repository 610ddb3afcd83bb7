"""Models are asked one by one, each once for the same weights and questions."""

from dataclasses import replace
from pathlib import Path

from tasks.evaluate.asking.sittings import Desk, ask_each, other_batch
from tasks.evaluate.asking.subjects import Subject, open_subject
from tasks.shared.gguf import write_gguf
from tasks.shared.keys import Digests
from tasks.shared.technique import Artifact, Kind
from tests.tiny_llama import build_model, empty_run, save_tiny


def told(subject: Subject, plan: tuple[str, ...], desk: Desk) -> str:
    (desk.scratch.parents[1] / f"asked {subject.name}").touch()
    return f"{subject.engine} {len(plan)}"


def test_an_export_is_asked_once_whether_by_its_folder_or_by_its_file(tmp_path: Path) -> None:
    files = [tmp_path / name / "model.gguf" for name in ("one", "other")]
    for seed, file in enumerate(files):
        file.parent.mkdir()
        write_gguf(save_tiny(tmp_path / f"source{seed}", build_model(seed=seed)), file, "f16")
    (files[0].parent / "parity.json").write_text("{}")  # an export's folder holds more than its weights
    digests = Digests(tmp_path / "digests.json")

    def subject(name: str, kind: Kind, path: Path) -> Subject:
        return open_subject(Artifact(name, kind, path, digests.tree(path)), "candidate")

    folder, file = subject("step", Kind.ENGINE, files[0].parent), subject("file", Kind.MODEL, files[0])
    other = subject("other", Kind.ENGINE, files[1].parent)
    assert folder.digest != file.digest and folder.content == file.content == file.digest != other.content
    _, run = empty_run(tmp_path)
    run = replace(run, memo=tmp_path / "memo")
    subjects = [folder, file, other]
    found = ask_each(subjects, dict.fromkeys(["step", "file", "other"], ("?",)), told, str, run)
    assert set(found.values()) == {"llama.cpp 1"}
    assert sorted(path.name for path in run.scratch.glob("asked *")) == ["asked other", "asked step"]


def test_asked_again_the_batches_differ() -> None:
    assert [other_batch(64, again, 900) for again in range(4)] == [64, 32, 16, 8]
    assert other_batch(64, 0, 30) == 64 and other_batch(64, 1, 30) == 15
    assert [other_batch(1, again) for again in range(3)] == [1, 2, 3]
