"""Artifacts: published whole or not at all, trusted only when they are what the manifest says."""

import errno
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.shared.errors import MachineError
from tasks.shared.store.artifacts import Place, Store, disk_errors
from tasks.shared.store.lineage import MANIFEST


def made(store: Store, key: str, text: str = "weights") -> Path:
    work = store.work("slim", key)
    (work / "out").mkdir(parents=True)
    (work / "out" / "model").write_text(text)
    (work / MANIFEST).write_text(json.dumps({"key": key, "output": store.digests.tree(work / "out")}))
    return work


def published(store: Store, key: str = "k" * 64) -> Place:
    place = store.entry("slim", key)
    store.publish(made(store, key), place)
    return place


def test_published_artifact_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    place = published(store)
    assert store.fault(place, "k" * 64) is None
    assert store.find("slim", "k" * 64) == place
    assert not store.work("slim", "k" * 64).exists()


def test_another_key_is_not_this_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert "changed" in str(store.fault(published(store), "other"))


def test_work_left_by_a_kill_after_publishing_is_removed_when_the_artifact_is_found(tmp_path: Path) -> None:
    store, key = Store(tmp_path), "k" * 64
    place = published(store)
    scratch = store.work("slim", key) / "scratch"
    scratch.mkdir(parents=True)
    with store.making("slim", key), ThreadPoolExecutor(1) as another:  # whoever makes it is still at it
        assert another.submit(store.find, "slim", key).result() == place
        assert scratch.is_dir()
    assert store.find("slim", key) == place
    assert not store.work("slim", key).exists()


@pytest.mark.parametrize("damage", ["edit", "truncate", "delete", "add", "manifest"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    place = published(store)
    file = place.out / "model"
    file.chmod(0o644)
    place.manifest.chmod(0o644)
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
    assert store.find("slim", "k" * 64) is None


def test_publishing_again_replaces_the_old_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    place = published(store)
    store.publish(made(store, "n" * 64, "newer"), place)
    assert (place.out / "model").read_text() == "newer"
    assert [path.name for path in place.folder.parent.iterdir()] == ["k" * 16]


def test_a_recipes_folder_shows_the_stores_files(tmp_path: Path) -> None:
    store = Store(tmp_path)
    place = published(store)
    view = store.view("trial", "slim")
    assert store.show(place, view) and not store.show(place, view)
    assert (view.out / "model").stat().st_ino == (place.out / "model").stat().st_ino
    store.publish(made(store, "n" * 64, "newer"), newer := store.entry("slim", "n" * 64))
    assert store.show(newer, view)
    assert (view.out / "model").read_text() == "newer" and (place.out / "model").read_text() == "weights"


def test_what_only_a_recipes_folder_has_is_taken_into_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    place = published(store)
    store.show(place, store.view("trial", "any_name"))
    shutil.rmtree(tmp_path / "artifacts/.store")
    assert store.find("slim", "k" * 64) == place and (place.out / "model").read_text() == "weights"
    assert store.find("slim", "other") is None


def test_work_that_was_never_published_is_no_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    work = made(store, "k" * 64)
    assert (work / MANIFEST).is_file()
    half_linked = tmp_path / "artifacts/trial/.slim.4711"
    shutil.copytree(work, half_linked)
    assert store.find("slim", "k" * 64) is None and not list(store.views()) and store.is_empty()


def test_artifacts_cannot_be_written_to_by_accident(tmp_path: Path) -> None:
    modes = {path.stat().st_mode & 0o777 for path in published(Store(tmp_path)).folder.rglob("*") if path.is_file()}
    assert modes == {0o444}


def test_an_entry_edited_in_place_is_not_hidden_by_its_links(tmp_path: Path) -> None:
    store = Store(tmp_path)
    place = published(store)
    store.show(place, view := store.view("trial", "slim"))
    (view.out / "model").chmod(0o644)
    (view.out / "model").write_text("edited!")
    assert store.find("slim", "k" * 64) is None


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "cannot be written")])
def test_disk_trouble_names_the_folder_and_the_knob(tmp_path: Path, code: int, words: str) -> None:
    with pytest.raises(MachineError, match=words) as caught, disk_errors(tmp_path):
        raise OSError(code, "boom")
    assert "runtime.root" in str(caught.value) and str(tmp_path) in str(caught.value)
