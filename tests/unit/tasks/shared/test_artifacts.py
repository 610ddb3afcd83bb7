"""Artifacts: published whole or not at all, trusted only when they are what the manifest says."""

import errno
import json
from pathlib import Path

import pytest

from tasks.shared.artifacts import MANIFEST, Place, Store, disk_errors
from tasks.shared.errors import MachineError


def made(store: Store, key: str, text: str = "weights") -> Path:
    work = store.work("slim", key)
    (work / "out").mkdir(parents=True)
    (work / "out" / "model").write_text(text)
    (work / MANIFEST).write_text(json.dumps({"key": key, "output": store.digests.tree(work / "out")}))
    return work


def published(store: Store, key: str = "k" * 64) -> Place:
    place = store.canonical("trial", "slim")
    store.publish(made(store, key), place)
    return place


def test_published_artifact_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    place = published(store)
    assert store.fault(place, "k" * 64) is None
    assert store.find("trial", "slim", "k" * 64) == place
    assert not store.work("slim", "k" * 64).exists()


def test_another_key_is_not_this_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert "changed" in str(store.fault(published(store), "other"))


@pytest.mark.parametrize("damage", ["edit", "truncate", "delete", "add", "manifest"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    place = published(store)
    file = place.out / "model"
    match damage:
        case "edit":
            file.write_text("weighty")
        case "truncate":
            file.write_text("wei")
        case "delete":
            file.unlink()
        case "add":
            (place.out / "more").write_text("x")
        case _:
            place.manifest.write_text("{")
    assert store.fault(place, "k" * 64)
    assert store.find("trial", "slim", "k" * 64) is None


def test_publishing_again_replaces_the_old_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    place = published(store)
    store.publish(made(store, "n" * 64, "newer"), place)
    assert (place.out / "model").read_text() == "newer"
    assert [path.name for path in place.folder.parent.iterdir()] == ["slim"]


def test_other_recipes_and_variants_share_by_links(tmp_path: Path) -> None:
    store = Store(tmp_path)
    place = published(store)
    found = store.find("another", "slim", "k" * 64)
    assert found == place
    target = store.canonical("another", "slim")
    store.adopt(place, target)
    assert (target.out / "model").stat().st_ino == (place.out / "model").stat().st_ino


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "cannot be written")])
def test_disk_trouble_names_the_folder_and_the_knob(tmp_path: Path, code: int, words: str) -> None:
    with pytest.raises(MachineError, match=words) as caught, disk_errors(tmp_path):
        raise OSError(code, "boom")
    assert "runtime.root" in str(caught.value) and str(tmp_path) in str(caught.value)
