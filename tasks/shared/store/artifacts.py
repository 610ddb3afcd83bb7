"""Artifacts on disk: made once per key, published by rename, valid if they match a manifest.

artifacts/.store/<step>/<key>/{out/, manifest.json}  all artifacts, one per key; never changed after publication
artifacts/<recipe>/<step>/{out/, manifest.json}      the recipe as written: hard links into the store, for people and DVC
artifacts/.work/<step>-<key>/{out/, scratch/}        work in progress; scratch survives a kill
artifacts/.predictions/<technique>/<digest>/         partial results that steps share, such as a model's answers, by content
artifacts/.locks/                                    locks, which are released when their process ends
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

from tasks.shared.errors import MachineError, StillroomError
from tasks.shared.files import flush_to_disk, full_disk
from tasks.shared.store.keys import Digests
from tasks.shared.store.lineage import MANIFEST

log = logging.getLogger(__name__)
SHORT = 16
"""Hex digits of a key in a folder name: 64 bits, enough to rule out collisions."""


@dataclass(frozen=True)
class Place:
    """Folder of one step's artifact."""

    folder: Path

    @property
    def out(self) -> Path:
        """Folder of the artifact itself, which other steps read."""
        return self.folder / "out"

    @property
    def manifest(self) -> Path:
        """File with the artifact's key, inputs and output digest."""
        return self.folder / MANIFEST

    def read_manifest(self) -> dict[str, Any] | None:
        """Read the manifest; None if it is missing or damaged."""
        try:
            found: dict[str, Any] = json.loads(self.manifest.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


class Store:
    """All artifacts below a root folder.  home: root of the shared store, if it is elsewhere."""

    def __init__(self, root: Path, home: Path | None = None, trust: bool = True) -> None:
        self.root = root / "artifacts"
        self.home = (home or root) / "artifacts"
        self.digests = Digests(self.home / ".digests.json", trust)

    def view(self, recipe: str, step: str) -> Place:
        """Return a step's place in the recipe's folder."""
        return Place(self.root / recipe / step)

    def entry(self, step: str, key: str) -> Place:
        """Return a step's place in the store."""
        return Place(self.home / ".store" / step / key[:SHORT])

    def work(self, step: str, key: str) -> Path:
        """Folder of work in progress; it depends on the key only, so that a rerun finds its scratch."""
        return self.home / ".work" / f"{step}-{key[:SHORT]}"

    def prediction_cache(self, target: str, *made_by: Any) -> Path:
        """Folder of a technique's partial results.

        made_by: everything that all of them depend on (code, versions, device).
        """
        digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
        return self.home / ".predictions" / target.rpartition(".")[2].lower() / digest[:SHORT]

    @contextmanager
    def lock(self, name: str, waiting: str = "", wait: bool = True) -> Iterator[None]:
        """Hold the lock of a name; wait while another process holds it.

        waiting: log message while waiting.
        wait: False raises filelock.Timeout at once if another process holds the lock.
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
        """Hold the lock for making the artifact of a key, under whatever step name."""
        with self.lock(key[:SHORT], f"{step} is being made by another run; waiting for it"):
            yield

    def fault(self, place: Place, key: str) -> str | None:
        """Reason why an artifact is not valid for a key; None if it is valid, "" if it is absent."""
        manifest = place.read_manifest()
        if manifest is None:
            there = place.manifest.exists() or place.out.exists()  # DVC may leave an empty folder
            return "its manifest is missing or damaged" if there else ""
        if manifest.get("key") != key:
            return "settings, inputs, code or versions changed"
        if not place.out.is_dir():
            return "its output is missing"
        try:
            same = self.digests.tree(place.out) == manifest.get("output")
        except FileNotFoundError:  # removed by another process meanwhile
            same = False
        return None if same else "its files were changed, cut short or deleted after it was made"

    def views(self) -> Iterator[Place]:
        """Yield the places of all steps in all recipes' folders."""
        for file in sorted(self.root.glob(f"*/*/{MANIFEST}")):
            parts = file.relative_to(self.root).parts
            if not any(part.startswith(".") for part in parts):  # the store, work, unfinished links
                yield Place(file.parent)

    def is_empty(self) -> bool:
        """Return True if there is no artifact of any step."""
        return next(self.home.glob(f".store/*/*/{MANIFEST}"), None) is None and next(self.views(), None) is None

    def look_up(self, step: str, key: str) -> Place | None:
        """Find a valid artifact of a key, in the store or (after `dvc pull`) in a recipe's folder."""
        entry = self.entry(step, key)
        if self.fault(entry, key) is None:
            return entry
        named_otherwise = map(Place, sorted(self.home.glob(f".store/*/{key[:SHORT]}")))
        for place in [*named_otherwise, *self.views()]:
            if place != entry and (place.read_manifest() or {}).get("key") == key and self.fault(place, key) is None:
                return place
        return None

    def find(self, step: str, key: str) -> Place | None:
        """Find the artifact of a key in the store; link it there first if it is elsewhere."""
        entry, found = self.entry(step, key), self.look_up(step, key)
        if found is not None and found != entry:
            with self.making(step, key):
                if self.fault(entry, key) is not None:
                    with suppress(FileNotFoundError, shutil.Error):  # removed meanwhile, by DVC for example
                        copy_links(found.folder, entry.folder)
            found = entry if self.fault(entry, key) is None else None
        if found is not None:
            with suppress(OSError):
                os.utime(entry.folder)  # time of last use, for `python -m flows.store gc`
            self._tidy(step, key)
        return found

    def _tidy(self, step: str, key: str) -> None:
        """Remove the work folder of an artifact whose process was killed while it cleaned up."""
        work = self.work(step, key)
        if work.exists():
            with suppress(Timeout, OSError), self.lock(key[:SHORT], wait=False):
                shutil.rmtree(work, ignore_errors=True)

    def publish(self, work: Path, entry: Place) -> None:
        """Move a finished work folder's out/ and manifest.json into the store, read-only."""
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
        """Hard-link an artifact into a recipe's folder; return False if it is there already."""
        manifest = entry.read_manifest() or {}
        if self.fault(view, str(manifest.get("key"))) is None:
            return False  # checked before locking, which fails in a folder that is not writable
        with self.lock(f"{view.folder.parent.name}-{view.folder.name}"):
            if self.fault(view, str(manifest.get("key"))) is None:
                return False
            copy_links(entry.folder, view.folder)
        return True


def copy_links(source: Path, target: Path) -> None:
    """Replace `target` atomically by hard links to a folder's files; copies across file systems."""
    temporary = target.parent / f".{target.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, copy_function=link_or_copy)
    replace_folder(temporary, target)


def link_or_copy(source: str, target: str) -> None:
    """Create a hard link, or a copy if the file system does not support it."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP}:
            raise
        shutil.copy2(source, target)


def replace_folder(source: Path, target: Path) -> None:
    """Replace `target` by `source`; readers see the old folder, briefly none, then the new one.

    The caller must hold the lock of the target's name.
    """
    aside = target.parent / f".{target.name}.old.{os.getpid()}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(aside)
    source.rename(target)
    for leftover in target.parent.glob(f".{target.name}.*"):  # ours, and those of killed processes
        shutil.rmtree(leftover, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Make all files read-only and flush them to disk, so that a power cut cannot empty them."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
            flush_to_disk(file)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn the errors of a full or read-only disk into a MachineError with a fix."""
    try:
        yield
    except StillroomError:
        raise  # it has its own words and fix
    except Exception as error:
        if full_disk(error) is not None:
            free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
            raise MachineError(
                str(folder),
                f"the disk is full ({free / 2**20:.0f} MiB free)",
                "room for this step's artifact",
                "free space (python -m flows.store lists old artifacts), or choose another disk: runtime.root=/big/disk; "
                "finished steps are kept",
            ) from error
        unwritable = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR}
        if isinstance(error, OSError) and error.errno in unwritable:
            raise MachineError(
                str(folder),
                f"cannot be written ({error.strerror})",
                "a folder that you may write",
                "runtime.root=/another/folder",
            ) from error
        raise
