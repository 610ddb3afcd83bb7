"""What dvc.lock says is read without DVC, and nothing broken in it is taken for a record."""

import json
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
import yaml
import zc.lockfile

from flows.versioning import files, lockfile, params
from flows.versioning.lockfile import lock_fault, prepare, recorded, remove_record

KEY = "ab" * 32
SETTINGS = {"_target_": "tasks.prune.depth.Depth", "inputs": {"model": "tuned"}, "rate": 1e-05, "names": ["a"]}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one recorded step."""
    for module, names in (
        (lockfile, ("PROJECT", "LOCK_FILE", "DVC", "PARAMS", "CACHE", "SPARE", "DVC_LOCK", "READERS")),
        (params, ("PARAMS",)),
        (files, ("DVC",)),
    ):
        for name in names:
            file = {
                "PROJECT": ".",
                "LOCK_FILE": "dvc.lock",
                "DVC": "dvc.yaml",
                "PARAMS": "params.yaml",
                "CACHE": "cache",
                "SPARE": ".dvc/tmp/dvc.lock.before",
                "DVC_LOCK": ".dvc/tmp/lock",
                "READERS": ".dvc/tmp/rwlock",
            }
            monkeypatch.setattr(module, name, tmp_path / file[name])
    folder = tmp_path / "artifacts/toy/slim"
    folder.mkdir(parents=True)
    manifest = json.dumps({"key": KEY})
    (folder / "manifest.json").write_text(manifest)
    write_params(tmp_path, SETTINGS)
    outs = ["artifacts/toy/slim/out", "artifacts/toy/slim/manifest.json"]
    stage = {"cmd": "run", "deps": ["code.py"], "params": ["recipes.toy.steps.slim", "recipes.toy.seed"], "outs": outs}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"toy-slim": stage}}))
    digest = md5(manifest.encode(), usedforsecurity=False).hexdigest()
    text = yaml.safe_dump(
        {"schema": "2.0", "stages": {"toy-other": entry("x", {}), "toy-slim": entry(digest, SETTINGS)}}
    )
    (tmp_path / "dvc.lock").write_text(text.replace("1.0e-05", "1e-05"))  # as DVC writes it
    return tmp_path


def entry(digest: str, settings: dict[str, Any]) -> dict[str, Any]:
    files = {"artifacts/toy/slim/out": "0.dir", "artifacts/toy/slim/manifest.json": digest}
    return {
        "cmd": "run",
        "deps": [{"path": "code.py", "hash": "md5", "md5": "1"}],
        "params": {"params.yaml": {"recipes.toy.steps.slim": settings, "recipes.toy.seed": 0}},
        "outs": [{"path": path, "hash": "md5", "md5": value} for path, value in files.items()],
    }


def write_params(project: Path, settings: dict[str, Any]) -> None:
    recipe = {"seed": 0, "models": {}, "steps": {"slim": settings}}
    (project / "params.yaml").write_text(yaml.safe_dump({"recipes": {"toy": recipe}}))


def change(project: Path, name: str, old: str, new: str) -> None:
    text = (project / name).read_text()
    assert old in text
    (project / name).write_text(text.replace(old, new, 1))


def test_a_recorded_artifact_is_known(project: Path) -> None:
    assert recorded("toy-slim", KEY)
    assert not recorded("toy-slim", "0" * 64)
    assert not recorded("toy-other", KEY) and not recorded("toy-unheard_of", KEY)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("params.yaml", "rate: 1.0e-05", "rate: 2.0e-05"),
        ("params.yaml", "- a", "- b"),
        ("params.yaml", "seed: 0", "seed: 1"),
        ("dvc.yaml", "code.py", "other.py"),
        ("dvc.yaml", "cmd: run", "cmd: walk"),
        ("dvc.yaml", "- recipes.toy.seed\n", ""),
        ("dvc.yaml", "toy-slim", "toy-slim2"),
        ("dvc.lock", "toy-slim:", "toy-slim: ["),
        ("artifacts/toy/slim/manifest.json", "}", ', "duration_s": 1}'),
    ],
)
def test_whatever_differs_is_no_record(project: Path, name: str, old: str, new: str) -> None:
    change(project, name, old, new)
    assert not recorded("toy-slim", KEY)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"stages: 7\n", b"stages:\n  toy-slim:\n    outs: 7\n"])
def test_a_missing_or_broken_lock_file_is_no_record(project: Path, content: bytes | None) -> None:
    (project / "dvc.lock").unlink()
    if content is not None:
        (project / "dvc.lock").write_bytes(content)
    assert not recorded("toy-slim", KEY)


def test_a_broken_lock_file_has_a_message(project: Path) -> None:
    assert lock_fault() == ""
    (project / "dvc.lock").write_text("stages:\n<<<<<<< HEAD\n")
    assert "dvc.lock: line 2: a merge conflict" in lock_fault()
    for text in ("", "schema: '2.0'\nstages: 7\n", "stages: {}\n", "schema: '2.0'\nstages:\n  a:\n"):
        (project / "dvc.lock").write_text(text)
        assert "delete it: the next run records all steps again" in lock_fault()
    (project / "dvc.lock").unlink()
    assert lock_fault() == ""


def test_wherever_a_kill_stops_dvc_the_file_is_brought_back(project: Path) -> None:
    lock, spare = project / "dvc.lock", project / ".dvc/tmp/dvc.lock.before"
    whole = lock.read_text()
    for end in range(len(whole)):  # DVC empties the file, then writes it from its start
        lock.write_text(whole)
        assert prepare() == "" and spare.read_text() == whole
        lock.write_text(whole[:end])
        assert prepare() == ""
        if lock.read_text() != whole:  # cut between two lines of the last record: DVC can read it, and it is no record
            assert whole[:end].endswith("\n") and not recorded("toy-slim", KEY)
    lock.write_text(whole)
    assert recorded("toy-slim", KEY)
    lock.write_text(more := whole.replace("toy-other", "toy-new") + whole[whole.index("  toy-other:") :])
    assert prepare() == "" and lock.read_text() == more, "a recording that was killed when all was written"
    lock.unlink()
    spare.write_text("")  # killed while DVC wrote the first record of all
    lock.write_text("schema: '2.")
    assert prepare() == "" and not lock.exists()
    spare.unlink()
    lock.write_text("")  # killed under `dvc repro`, which keeps no copy
    assert prepare() == "" and not lock.exists()


def test_what_is_no_kills_doing_is_left_alone(project: Path) -> None:
    lock, spare = project / "dvc.lock", project / ".dvc/tmp/dvc.lock.before"
    assert prepare() == ""
    lock.write_text(conflict := "stages:\n<<<<<<< HEAD\n")
    assert "merge conflict" in prepare() and lock.read_text() == conflict and spare.exists()
    spare.unlink()
    lock.write_text(torn := "schema: '2.0'\nstages:\n  toy-slim:\n    c")
    assert "dvc.lock" in prepare() and lock.read_text() == torn, "no copy to bring back: the user decides"
    lock.write_text("")
    readers = project / ".dvc/tmp/rwlock"
    readers.write_text('{"read": ')
    locks = [zc.lockfile.LockFile(str(spare.with_name(name))) for name in ("lock", "rwlock.lock")]
    assert prepare() == "" and lock.exists() and readers.exists(), "DVC is at work: it is in the midst of writing"
    for held in locks:
        held.close()
    assert prepare() == "" and not lock.exists() and not readers.exists()
    readers.write_text('{"read": {}}')
    assert prepare() == "" and readers.exists()


def test_a_record_is_taken_back_and_no_other(project: Path) -> None:
    run = project / "cache/runs/aa/bb/cc"
    run.parent.mkdir(parents=True)
    run.write_text("cmd: python -m flows.stage toy slim\n")
    run.with_name("dd").write_text("cmd: python -m flows.stage toy slim2\n")
    remove_record("toy-slim", since=0)
    assert not recorded("toy-slim", KEY) and not run.exists() and run.with_name("dd").exists()
    kept = yaml.safe_load((project / "dvc.lock").read_text())
    assert list(kept["stages"]) == ["toy-other"] and kept["schema"] == "2.0"
    remove_record("toy-other", since=0)
    assert not (project / "dvc.lock").exists(), "DVC cannot read an empty one"
