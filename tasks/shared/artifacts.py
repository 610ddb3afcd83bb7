"""Artifacts on disk: written beside, then renamed; trusted only when key and content match the manifest.

artifacts/<recipe>/<step>/{out/, manifest.json}     the recipe as written (canonical)
artifacts/.store/<step>/<key>/{out/, manifest.json} runs with overrides (variants), shared by all recipes
artifacts/.work/<step>-<key>/{out/, scratch/}       work in progress; scratch survives a kill
artifacts/.locks/<step>-<key>.lock                  held by the process that makes it
"""

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tasks.shared.errors import MachineError
from tasks.shared.keys import Digests

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
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
    """All artifacts below one root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root / "artifacts"
        self.digests = Digests(self.root / ".digests.json")

    def canonical(self, recipe: str, step: str) -> Place:
        """The step's place for the recipe as written."""
        return Place(self.root / recipe / step)

    def variant(self, step: str, key: str) -> Place:
        """The step's place for a run with overrides."""
        return Place(self.root / ".store" / step / key[:SHORT])

    def work(self, step: str, key: str) -> Path:
        """Folder of the work in progress, the same for the same key, so that a rerun finds its scratch."""
        return self.root / ".work" / f"{step}-{key[:SHORT]}"

    @contextmanager
    def alone(self, step: str, key: str) -> Iterator[None]:
        """Hold the only right to make this artifact; waits while another process has it, which a killed one gives back."""
        lock = FileLock(self.root / ".locks" / f"{step}-{key[:SHORT]}.lock")
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("%s is being made by another run; waiting for it", step)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def fault(self, place: Place, key: str) -> str | None:
        """Why the artifact cannot be used for this key: None (it can), "" (nothing there), or a reason."""
        manifest = place.read_manifest()
        if manifest is None:
            return "" if not place.folder.exists() else "its manifest is missing or damaged"
        if manifest.get("key") != key:
            return "settings, inputs, code or versions changed"
        if not place.out.is_dir():
            return "its output is missing"
        if self.digests.tree(place.out) != manifest.get("output"):
            return "its files were changed, cut short or deleted after it was made"
        return None

    def find(self, recipe: str, step: str, key: str) -> Place | None:
        """A valid artifact for this key: the recipe's own, a variant's, or another recipe's step of any name."""
        others = [Place(path.parent) for path in sorted(self.root.glob(f"*/{step}/{MANIFEST}"))]
        for place in [self.canonical(recipe, step), self.variant(step, key), *others]:
            if place.manifest.is_file() and self.fault(place, key) is None:
                return place
        return None

    def publish(self, work: Path, target: Place) -> None:
        """Move a finished work folder's out/ and manifest.json to the target in one rename; what was there goes away."""
        target.folder.parent.mkdir(parents=True, exist_ok=True)
        ready = work / "ready"
        shutil.rmtree(ready, ignore_errors=True)
        ready.mkdir()
        (work / "out").rename(ready / "out")
        (work / MANIFEST).rename(ready / MANIFEST)
        sync_tree(ready)
        replace_folder(ready, target.folder)
        shutil.rmtree(work, ignore_errors=True)

    def adopt(self, found: Place, target: Place) -> None:
        """Give a valid artifact a second place by hard links (copies on another file system)."""
        temporary = target.folder.parent / f".{target.folder.name}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(found.folder, temporary, copy_function=link_or_copy)
        replace_folder(temporary, target.folder)


def link_or_copy(source: str, target: str) -> None:
    """Hard link, or a copy where the file system refuses links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP}:
            raise
        shutil.copy2(source, target)


def replace_folder(source: Path, target: Path) -> None:
    """Put a folder in place of another; a reader sees the old one, for a moment none, then the new one, never a mixture."""
    aside = target.parent / f".{target.name}.old.{os.getpid()}"
    if target.exists():
        target.rename(aside)
    source.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Flush every file below a folder to the disk, so that a rename never shows files that a power cut would empty."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one message that names the folder and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
            raise MachineError(
                str(folder),
                f"the disk is full ({free / 2**20:.0f} MiB free)",
                "room for this step's artifact",
                "free space, or put artifacts elsewhere: runtime.root=/big/disk; finished steps are kept",
            ) from error
        if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
            raise MachineError(
                str(folder),
                f"cannot be written ({error.strerror})",
                "a folder that you may write",
                "runtime.root=/another/folder",
            ) from error
        raise
