"""A store entry, the view of it and DVC's cache share one copy of every file, and it is the good one."""

import errno
import json
import os
import shutil
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest

from flows.versioning import commit as dvc
from flows.versioning.commit import relink
from tasks.shared.store.keys import Digests


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """View and store entry of one artifact, two copies."""
    monkeypatch.setattr(dvc, "CACHE", tmp_path / "cache")
    entry, view = tmp_path / "artifacts/.store/slim/0123456789abcdef", tmp_path / "artifacts/toy/slim"
    (entry / "out/deep").mkdir(parents=True)
    (entry / "out/deep/weights").write_text("weights")
    output = Digests(tmp_path / "memory").tree(entry / "out")
    (entry / "manifest.json").write_text(json.dumps({"output": output}))
    shutil.copytree(entry, view)
    return view, entry


def test_two_copies_become_one(places: tuple[Path, Path]) -> None:
    view, entry = places
    assert relink(view, entry) == 2
    assert (entry / "out/deep/weights").samefile(view / "out/deep/weights")
    assert sorted(path.name for path in (entry / "out/deep").iterdir()) == ["weights"]
    assert relink(view, entry) == 0


def test_a_damaged_object_of_the_cache_is_replaced(places: tuple[Path, Path], tmp_path: Path) -> None:
    view, entry = places
    name = md5(b"weights", usedforsecurity=False).hexdigest()
    cached = tmp_path / "cache/files/md5" / name[:2] / name[2:]
    cached.parent.mkdir(parents=True)
    cached.write_text("damaged")
    (view / "out/deep/weights").unlink()
    os.link(cached, view / "out/deep/weights")
    relink(view, entry)
    assert cached.read_text() == (view / "out/deep/weights").read_text() == "weights"
    assert cached.samefile(entry / "out/deep/weights")


def test_a_damaged_entry_replaces_nothing(places: tuple[Path, Path]) -> None:
    view, entry = places
    (entry / "out/deep/weights").write_text("damaged")
    relink(view, entry)
    assert (view / "out/deep/weights").read_text() == "weights"


def test_without_hard_links_both_stay_copies(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    view, entry = places
    relink(view, entry)
    assert (entry / "out/deep/weights").read_text() == "weights" == (view / "out/deep/weights").read_text()


def test_what_keeps_dvc_from_recording_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project"
    monkeypatch.setattr(dvc, "PROJECT", folder)
    folder.mkdir()
    assert "dvc init" in dvc.obstacle()
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n")
    assert "no git repository" in dvc.obstacle()
    (folder / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    assert dvc.obstacle() == ""
    (folder / ".dvc/config.local").unlink()
    (tmp_path / ".git").mkdir()
    assert dvc.obstacle() == ""
