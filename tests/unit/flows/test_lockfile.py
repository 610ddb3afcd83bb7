"""What dvc.lock says is read without DVC, and nothing broken in it is taken for a record."""

import json
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import lockfile, params, sync
from flows.lockfile import lock_fault, recorded, take_back

KEY = "ab" * 32
SETTINGS = {"_target_": "tasks.prune.depth.Depth", "inputs": {"model": "tuned"}, "rate": 1e-05, "names": ["a"]}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one recorded step."""
    for module, names in (
        (lockfile, ("PROJECT", "LOCK_FILE", "DVC", "PARAMS", "CACHE")),
        (params, ("PARAMS",)),
        (sync, ("DVC",)),
    ):
        for name in names:
            file = {
                "PROJECT": ".",
                "LOCK_FILE": "dvc.lock",
                "DVC": "dvc.yaml",
                "PARAMS": "params.yaml",
                "CACHE": "cache",
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
    (project / "dvc.lock").unlink()
    assert lock_fault() == ""


def test_a_record_is_taken_back_and_no_other(project: Path) -> None:
    run = project / "cache/runs/aa/bb/cc"
    run.parent.mkdir(parents=True)
    run.write_text("cmd: python -m flows.stage toy slim\n")
    run.with_name("dd").write_text("cmd: python -m flows.stage toy slim2\n")
    take_back("toy-slim", since=0)
    assert not recorded("toy-slim", KEY) and not run.exists() and run.with_name("dd").exists()
    kept = yaml.safe_load((project / "dvc.lock").read_text())
    assert list(kept["stages"]) == ["toy-other"] and kept["schema"] == "2.0"
    take_back("toy-other", since=0)
    assert (project / "dvc.lock").read_text() == ""
