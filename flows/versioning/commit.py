"""Records of finished steps in dvc.lock, for `dvc repro` and `dvc push`.

`dvc commit --force` records the files that are on the disk at that moment.  So a step is recorded only while its code, settings and
inputs are still those of its artifact, and the record is removed if they changed in the meantime.
DVC runs in a child process, which takes 0.4 s plus 0.07 s for each stage and keeps DVC's logging, threads and 560 modules
out of the flow.
"""

import filecmp
import hashlib
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from flows.planning.config import Runtime
from flows.planning.plan import build_plan
from flows.planning.session import Session
from flows.planning.steps import Plan
from flows.versioning.files import locked
from flows.versioning.lockfile import CACHE, SPARE, prepare, recorded, remove_record, repair
from flows.versioning.params import tracked_recipe
from flows.versioning.pipeline import split_stage, view_folder
from tasks.shared.errors import MachineError, StillroomError
from tasks.shared.files import replacing
from tasks.shared.store.artifacts import SHORT, Place, link_or_copy
from tasks.shared.store.keys import PROJECT, Digests

__all__ = ["repair_after_kill", "moved", "obstacle", "record", "recorded", "relink"]
log = logging.getLogger("stillroom")
BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")
"""DVC's messages if another DVC process holds the repository or this stage's files."""
PATIENCE_S, PAUSE_S = 60.0, 1.0


def record(stages: Mapping[str, str], patience_s: float = PATIENCE_S) -> list[str]:
    """Record finished steps, and return the stages that dvc.lock now holds.

    stages: key by stage.
    patience_s: longest wait for another DVC process, seconds.
    One warning names the steps that were not recorded; their artifacts are kept, and the next run or `dvc repro` records them.
    Call it from one thread at a time.
    """
    until = time.monotonic() + patience_s
    try:
        while True:
            with locked():  # released while we wait: `dvc repro` may be waiting for a step that needs this lock
                kept, failure = _attempt(stages)
            if not _is_busy(failure) or time.monotonic() > until:
                break
            time.sleep(PAUSE_S)
    except MachineError as error:
        kept, failure = [], str(error)
    if failure:
        missing = ", ".join(stage for stage in stages if stage not in kept)
        log.warning("DVC could not record %s (the artifacts are kept, the next run tries again): %s", missing, failure)
    return kept


def repair_after_kill() -> None:
    """Repair a dvc.lock that a killed run left damaged, unless another run is recording."""
    if SPARE.is_file():
        with suppress(MachineError), locked(0):
            repair()


def obstacle() -> str:
    """Reason why DVC cannot record anything in this checkout, in one line; empty if it can.

    A run then continues without DVC.
    """
    if not (PROJECT / ".dvc" / "config").is_file():
        return "there is no .dvc folder (dvc init makes one)"
    configs = [PROJECT / ".dvc" / name for name in ("config", "config.local")]
    if any(re.search(r"(?m)^\s*no_scm\s*=\s*true", path.read_text("utf-8")) for path in configs if path.is_file()):
        return ""
    if any((folder / ".git").exists() for folder in (PROJECT, *PROJECT.parents)):
        return ""
    return "this is no git repository (git init, or: dvc config --local core.no_scm true)"


def _attempt(stages: Mapping[str, str]) -> tuple[list[str], str]:
    """Record the stages whose inputs are unchanged.

    Returns the recorded stages, and DVC's last line of output if it failed.
    """
    sessions: dict[str, Session] = {}
    started = time.time()
    ready = {}
    for stage, key in stages.items():
        if reason := moved(stage, key, sessions):
            log.warning("%s is not recorded in dvc.lock: %s; the next run tries again", stage, reason)
        else:
            ready[stage] = key
    if not ready:
        return [], ""
    if failure := _commit(list(ready)):
        if _is_busy(failure) or len(ready) == 1:
            return [], failure
        # One bad stage must not stop the others.
        failed = {stage: failure for stage in ready if (failure := _commit([stage]))}
        ready = {stage: key for stage, key in ready.items() if stage not in failed}
        failure = "; ".join(dict.fromkeys(failed.values()))
    sessions.clear()
    for stage, key in list(ready.items()):
        if reason := moved(stage, key, sessions):
            log.warning("%s is not recorded in dvc.lock: %s in the meantime; the next run tries again", stage, reason)
            remove_record(stage, started)
            del ready[stage]
        else:
            recipe, step = split_stage(stage)
            relink(PROJECT / view_folder(recipe, step), PROJECT / "artifacts" / ".store" / step / key[:SHORT])
    return list(ready), failure


def moved(stage: str, key: str, sessions: dict[str, Session]) -> str:
    """Reason why this key's artifact is no longer the stage's result; empty if it still is.

    sessions: open sessions by recipe, shared among calls.
    Everything is read again except large files with a known digest.
    """
    recipe, name = split_stage(stage)
    try:
        session = sessions.get(recipe)
        if session is None:
            session = sessions[recipe] = Session(_plan(recipe), Runtime())
        found = session.key(session.plan.step(name))
    except (StillroomError, OSError) as error:
        return str(error).splitlines()[0]
    if found != key:
        return "its code, settings, files or inputs changed"
    manifest = Place(PROJECT / view_folder(recipe, name)).read_manifest()
    return "" if manifest is not None and manifest.get("key") == key else "its folder holds another artifact"


def relink(view: Path, entry: Path) -> int:
    """Share one copy of the files among a store entry, its view and DVC's cache.

    DVC moves the view's inodes into its cache.  If the cache already has the content, DVC links the view to its own copy, and the
    store's files would be a second one.  If the contents differ, DVC's copy is damaged and is replaced.
    Returns the number of files that were linked.
    """
    count = 0
    for file in sorted(path for path in entry.rglob("*") if path.is_file()):
        twin = view / file.relative_to(entry)
        if not twin.is_file() or twin.samefile(file):
            continue
        if filecmp.cmp(file, twin, shallow=False):
            _link(twin, file)
            count += 1
        elif _intact(entry):
            _replace_damaged(file, twin)
            count += 1
    return count


def _intact(entry: Path) -> bool:
    manifest = Place(entry).read_manifest() or {}
    return Digests(entry.parents[2] / ".digests.json").tree(entry / "out") == manifest.get("output")


def _replace_damaged(good: Path, damaged: Path) -> None:
    """Replace a damaged file of a view, and the object in DVC's cache that it came from."""
    with good.open("rb") as stream:
        name = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    cached = CACHE / "files" / "md5" / name[:2] / name[2:]
    if cached.is_file() and cached.samefile(damaged):
        log.warning("DVC's cache had a damaged copy of %s; it is replaced", damaged.name)
        _link(good, cached)
    _link(good, damaged)


def _link(source: Path, target: Path) -> None:
    """Atomically hard-link `target` to `source`; copy it if the disk has no hard links."""
    with replacing(target) as temporary:
        link_or_copy(str(source), str(temporary))


def _plan(recipe: str) -> Plan:
    return build_plan(tracked_recipe(recipe))


def _commit(stages: Sequence[str]) -> str:
    """Run `dvc commit` for these stages; return its error message, empty if it succeeded.

    It runs in its own session, so that Ctrl-C on the flow cannot end it while it writes dvc.lock.  --quiet would hide errors.
    """
    if fault := prepare():
        return fault
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "commit", "--force", *stages],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        env=os.environ | {"DVC_NO_ANALYTICS": "1"},
        check=False,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    SPARE.unlink(missing_ok=True)
    if done.returncode == 0:
        return ""
    errors = [row.partition("ERROR: ")[2] for row in done.stderr.splitlines() if "ERROR: " in row]
    return "; ".join(errors) or done.stderr.strip() or f"dvc commit ended with code {done.returncode}"


def _is_busy(failure: str) -> bool:
    return any(words in failure for words in BUSY)
