"""Artifacts on disk: made once for a key, written beside, then renamed; trusted only when key and content match the manifest.

artifacts/.store/<step>/<key>/{out/, manifest.json}  every artifact, one for each key; never changed once it is there
artifacts/<recipe>/<step>/{out/, manifest.json}      the recipe as written: hard links into the store, for people and for DVC
artifacts/.work/<step>-<key>/{out/, scratch/}        work in progress; scratch survives a kill
artifacts/.predictions/<technique>/<digest>/                partial results that steps share: what a model answered, filed by content
artifacts/.locks/                                    locks; a killed process gives its own back
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tasks.shared.errors import MachineError
from tasks.shared.files import flush_to_disk
from tasks.shared.store.keys import Digests
from tasks.shared.store.lineage import MANIFEST

log = logging.getLogger(__name__)
SHORT = 16
"""Hex digits of a key in a folder name: 64 bits, no clash among any number of runs that a disk holds."""


@dataclass(frozen=True)
class Place:
    """Where one step's artifact lives."""

    folder: Path

    @property
    def out(self) -> Path:
        """The artifact itself: what other steps read."""
        return self.folder / "out"

    @property
    def manifest(self) -> Path:
        """How it came to be."""
        return self.folder / MANIFEST

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest, or None if it is absent or damaged."""
        try:
            found: dict[str, Any] = json.loads(self.manifest.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


class Store:
    """All artifacts below one root folder.  home: the root whose store is shared, if it is another one."""

    def __init__(self, root: Path, home: Path | None = None, trust: bool = True) -> None:
        self.root = root / "artifacts"
        self.home = (home or root) / "artifacts"
        self.digests = Digests(self.home / ".digests.json", trust)

    def view(self, recipe: str, step: str) -> Place:
        """The step's place for the recipe as written."""
        return Place(self.root / recipe / step)

    def entry(self, step: str, key: str) -> Place:
        """The step's place in the store."""
        return Place(self.home / ".store" / step / key[:SHORT])

    def work(self, step: str, key: str) -> Path:
        """Folder of the work in progress, the same for the same key, so that a rerun finds its scratch."""
        return self.home / ".work" / f"{step}-{key[:SHORT]}"

    def prediction_cache(self, target: str, *made_by: Any) -> Path:
        """Folder of a technique's partial results.  made_by: what every one of them depends on (code, versions, device)."""
        digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
        return self.home / ".predictions" / target.rpartition(".")[2].lower() / digest[:SHORT]

    @contextmanager
    def alone(self, name: str, waiting: str = "", wait: bool = True) -> Iterator[None]:
        """Hold the only right to a name; waits while another process has it.  waiting: what to say then.

        Raises filelock.Timeout at once if another has it and wait is false.
        """
        lock = FileLock(self.home / ".locks" / f"{name}.lock", is_singleton=True)
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise
            if waiting:
                log.info("%s", waiting)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def making(self, step: str, key: str) -> Iterator[None]:
        """Hold the only right to make the artifact of this key, whatever the step is called there."""
        with self.alone(key[:SHORT], f"{step} is being made by another run; waiting for it"):
            yield

    def fault(self, place: Place, key: str) -> str | None:
        """Why the artifact cannot be used for this key: None (it can), "" (nothing there), or a reason."""
        manifest = place.read_manifest()
        if manifest is None:
            there = place.manifest.exists() or place.out.exists()  # DVC empties a folder and leaves it
            return "its manifest is missing or damaged" if there else ""
        if manifest.get("key") != key:
            return "settings, inputs, code or versions changed"
        if not place.out.is_dir():
            return "its output is missing"
        try:
            same = self.digests.tree(place.out) == manifest.get("output")
        except FileNotFoundError:  # somebody takes it away while we look
            same = False
        return None if same else "its files were changed, cut short or deleted after it was made"

    def views(self) -> Iterator[Place]:
        """Every recipe's folder of every step."""
        for file in sorted(self.root.glob(f"*/*/{MANIFEST}")):
            if not any(
                part.startswith(".") for part in file.relative_to(self.root).parts
            ):  # the store, work, what is half linked
                yield Place(file.parent)

    def is_empty(self) -> bool:
        """Whether there is no artifact of any step."""
        return next(self.home.glob(f".store/*/*/{MANIFEST}"), None) is None and next(self.views(), None) is None

    def look_up(self, step: str, key: str) -> Place | None:
        """A valid artifact of this key, wherever it is: in the store, or only in some recipe's folder (after `dvc pull`)."""
        entry = self.entry(step, key)
        if self.fault(entry, key) is None:
            return entry
        named_otherwise = map(Place, sorted(self.home.glob(f".store/*/{key[:SHORT]}")))
        for place in [*named_otherwise, *self.views()]:
            if place != entry and (place.read_manifest() or {}).get("key") == key and self.fault(place, key) is None:
                return place
        return None

    def find(self, step: str, key: str) -> Place | None:
        """The artifact of this key in the store, taken in first if it is elsewhere."""
        entry, found = self.entry(step, key), self.look_up(step, key)
        if found is not None and found != entry:
            with self.making(step, key):
                if self.fault(entry, key) is not None:
                    with suppress(FileNotFoundError, shutil.Error):  # taken away meanwhile, by DVC say
                        copy_links(found.folder, entry.folder)
            found = entry if self.fault(entry, key) is None else None
        if found is not None:
            with suppress(OSError):
                os.utime(entry.folder)  # its last use, for `python -m flows.store gc`
        return found

    def publish(self, work: Path, entry: Place) -> None:
        """Move a finished work folder's out/ and manifest.json into the store in one rename; nobody can write to them then."""
        entry.folder.parent.mkdir(parents=True, exist_ok=True)
        ready = work / "ready"
        shutil.rmtree(ready, ignore_errors=True)
        ready.mkdir()
        (work / "out").rename(ready / "out")
        (work / MANIFEST).rename(ready / MANIFEST)
        sync_tree(ready)
        replace_folder(ready, entry.folder)
        shutil.rmtree(work, ignore_errors=True)

    def show(self, entry: Place, view: Place) -> bool:
        """Make a recipe's folder show this artifact, by hard links; False if it did already."""
        manifest = entry.read_manifest() or {}
        if self.fault(view, str(manifest.get("key"))) is None:
            return False  # before the lock, which a folder that cannot be written would refuse
        with self.alone(f"{view.folder.parent.name}-{view.folder.name}"):
            if self.fault(view, str(manifest.get("key"))) is None:
                return False
            copy_links(entry.folder, view.folder)
        return True


def copy_links(source: Path, target: Path) -> None:
    """Give a folder a second place by hard links (copies on another file system), all or nothing."""
    temporary = target.parent / f".{target.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, copy_function=link_or_copy)
    replace_folder(temporary, target)


def link_or_copy(source: str, target: str) -> None:
    """Hard link, or a copy where the file system refuses links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP}:
            raise
        shutil.copy2(source, target)


def replace_folder(source: Path, target: Path) -> None:
    """Put a folder in place of another; a reader sees the old one, for a moment none, then the new one, never a mixture.

    The caller holds the lock of the target's name.
    """
    aside = target.parent / f".{target.name}.old.{os.getpid()}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(aside)
    source.rename(target)
    for leftover in target.parent.glob(f".{target.name}.*"):  # ours, and those of processes that were killed here
        shutil.rmtree(leftover, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Make every file read-only and flush it to the disk, so that a rename never shows files that a power cut would empty."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
            flush_to_disk(file)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one message that names the folder and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
            raise MachineError(
                str(folder),
                f"the disk is full ({free / 2**20:.0f} MiB free)",
                "room for this step's artifact",
                "free space (python -m flows.store shows what is old), or put artifacts elsewhere: runtime.root=/big/disk; "
                "finished steps are kept",
            ) from error
        if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR}:
            raise MachineError(
                str(folder),
                f"cannot be written ({error.strerror})",
                "a folder that you may write",
                "runtime.root=/another/folder",
            ) from error
        raise
