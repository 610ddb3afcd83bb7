"""Access to dvc.lock without DVC: look up a record, remove one, repair after a kill.

DVC truncates dvc.lock, and its own list of readers and writers, before it rewrites them.  A kill in between leaves an empty or
partial file, which no later `dvc` command can read.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
import zc.lockfile

from flows.versioning.files import DVC
from flows.versioning.params import PARAMS, broken_file, load_yaml, read_mapping, tracked_params
from flows.versioning.pipeline import split_stage, view_folder
from tasks.shared.errors import StillroomError
from tasks.shared.files import write_text
from tasks.shared.store.artifacts import Place
from tasks.shared.store.keys import PROJECT

LOCK_FILE = PROJECT / "dvc.lock"
CACHE = PROJECT / ".dvc" / "cache"
SPARE = PROJECT / ".dvc" / "tmp" / "dvc.lock.before"
"""Copy of dvc.lock from before the recording in progress; empty if there was no dvc.lock.  Deleted after the recording."""
DVC_LOCK, READERS = PROJECT / ".dvc" / "tmp" / "lock", PROJECT / ".dvc" / "tmp" / "rwlock"
"""Files of DVC: the lock that a writer of dvc.lock holds, and the list of processes that read or write artifacts."""
log = logging.getLogger("stillroom")


def recorded(stage: str, key: str) -> bool:
    """Return True if dvc.lock already records this artifact for this stage of dvc.yaml.

    The manifest holds the key and is one of the stage's outputs, so its digest in dvc.lock identifies the recorded artifact.
    Takes a few milliseconds, without DVC.  A missing, old, broken or foreign dvc.lock counts as no record.
    """
    lock, wanted = _stage(LOCK_FILE, stage), _stage(DVC, stage)
    place = Place(PROJECT / view_folder(*split_stage(stage)))
    if lock is None or wanted is None or (place.read_manifest() or {}).get("key") != key:
        return False
    try:
        outs = {out["path"]: out["md5"] for out in lock["outs"]}
        same = lock["cmd"] == wanted["cmd"] and {dep["path"] for dep in lock["deps"]} == set(wanted["deps"])
        params = lock["params"]["params.yaml"]
        manifest = outs[place.manifest.relative_to(PROJECT).as_posix()]
    except (KeyError, TypeError):
        return False
    now = _params(*_stamp(PARAMS))
    return (
        same
        and manifest == hashlib.md5(place.manifest.read_bytes(), usedforsecurity=False).hexdigest()
        and set(outs) == set(wanted["outs"])
        and set(params) == set(wanted["params"])
        and all(_same(value, _look_up(now, name)) for name, value in params.items())
    )


def remove_record(stage: str, since: float) -> None:
    """Remove a stage's record from dvc.lock, and its entries in DVC's run cache since `since`."""
    kept = {name: text for name, text in _blocks(*_stamp(LOCK_FILE)).items() if name != stage}
    if kept:
        text = LOCK_FILE.read_text("utf-8")
        write_text(LOCK_FILE, text[: text.index("stages:")] + "stages:\n" + "".join(kept.values()))
    else:
        LOCK_FILE.unlink(missing_ok=True)  # DVC treats an empty file as broken
    command = "cmd: python -m flows.stage {} {}\n".format(*split_stage(stage))
    for file in (CACHE / "runs").glob("*/*/*"):
        if file.stat().st_mtime >= since - 1 and command in file.read_text("utf-8"):
            file.unlink()


def prepare() -> str:
    """Prepare dvc.lock for DVC and keep a copy; return its fault, empty if there is none."""
    repair()
    with _held(DVC_LOCK) as ours:
        if not ours:
            return ""  # `dvc` itself names the process that holds the lock
        if fault := lock_fault():
            return fault
        write_text(SPARE, LOCK_FILE.read_text("utf-8") if LOCK_FILE.is_file() else "")
    return ""


def repair() -> None:
    """Restore dvc.lock if a killed recording left it empty or partial.

    The next recording repeats the lost records, since dvc.lock never holds anything that is not also elsewhere.
    Does nothing while a DVC process is running, which may be writing.
    """
    SPARE.parent.mkdir(parents=True, exist_ok=True)
    _repair_readers()
    with _held(DVC_LOCK) as ours:
        if not ours:
            return
        if SPARE.is_file():
            fault = lock_fault()
            if "merge conflict" in fault:
                return  # not caused by a kill
            cut = LOCK_FILE.is_file() and not LOCK_FILE.read_bytes().endswith(b"\n")
            if fault or cut or not _blocks(*_stamp(SPARE)).keys() <= _blocks(*_stamp(LOCK_FILE)).keys():
                log.warning("dvc.lock is restored: a run was killed while DVC wrote it")
                SPARE.replace(LOCK_FILE)
            SPARE.unlink(missing_ok=True)
        if LOCK_FILE.is_file() and not LOCK_FILE.stat().st_size:
            LOCK_FILE.unlink()


def lock_fault() -> str:
    """Return a short message about a fault of dvc.lock and its fix; empty if there is none."""
    if not LOCK_FILE.is_file():
        return ""
    try:
        found = read_mapping(LOCK_FILE)
        stages = found.get("stages", {})
        if "schema" not in found or not isinstance(stages, dict):
            raise broken_file(LOCK_FILE, "no schema, or no mapping of stages")
        if torn := [name for name, stage in stages.items() if not _is_record(stage)]:
            raise broken_file(LOCK_FILE, f"an incomplete record of stage {torn[0]}")
    except StillroomError as error:
        return str(error)
    return ""


def _is_record(stage: Any) -> bool:
    """Return True if a stage's record has the fields that DVC requires."""
    if not isinstance(stage, dict) or "cmd" not in stage:
        return False
    files, params = [stage.get("deps", []), stage.get("outs", [])], stage.get("params", {})
    return (
        all(isinstance(part, list) for part in files)
        and all(isinstance(file, dict) and "path" in file for part in files for file in part)
        and isinstance(params, dict)
        and all(isinstance(values, dict) for values in params.values())
    )


def _repair_readers() -> None:
    """Remove DVC's list of readers and writers if a kill left it incomplete."""
    if not READERS.is_file() or _is_json(READERS):
        return
    with _held(READERS.with_name("rwlock.lock")) as ours:  # else another process is writing it
        if ours and not _is_json(READERS):
            READERS.unlink()


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Hold one of DVC's locks if it is free; yield True if it is held."""
    try:
        lock = zc.lockfile.LockFile(str(path))
    except zc.lockfile.LockError:
        yield False
        return
    try:
        yield True
    finally:
        lock.close()


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True


def _stamp(path: Path) -> tuple[Path, int, int, int]:
    """Return a file's path, mtime, size and inode, which change with its content."""
    try:
        state = path.stat()
    except OSError:
        return path, 0, 0, 0
    return path, state.st_mtime_ns, state.st_size, state.st_ino


@lru_cache(maxsize=4)
def _blocks(path: Path, *_: int) -> dict[str, str]:
    """Text of every stage in dvc.yaml or dvc.lock.

    Programs write both files, so indentation marks the end of a stage.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    return {found[1]: found[0] for found in re.finditer(r"^  ([\w-]+):\n(?:    .*\n)+", text, re.MULTILINE)}


def _stage(path: Path, stage: str) -> dict[str, Any] | None:
    """Parse one stage of dvc.yaml or dvc.lock; the whole file takes ten times as long."""
    text = _blocks(*_stamp(path)).get(stage)
    return _parsed(text) if text else None


@lru_cache(maxsize=256)
def _parsed(text: str) -> dict[str, Any] | None:
    try:
        found = load_yaml(text)
    except yaml.YAMLError:
        return None
    inner = next(iter(found.values())) if isinstance(found, dict) else None
    return inner if isinstance(inner, dict) else None


@lru_cache(maxsize=2)
def _params(*_: Any) -> dict[str, Any]:
    try:
        return {"recipes": tracked_params()}
    except StillroomError:
        return {}


def _look_up(values: Any, name: str) -> Any:
    for part in name.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _same(locked_value: Any, now: Any) -> bool:
    """Return True if two values are equal; DVC writes 1e-05, which YAML 1.1 reads as text."""
    if isinstance(locked_value, Mapping) and isinstance(now, Mapping):
        return locked_value.keys() == now.keys() and all(_same(value, now[key]) for key, value in locked_value.items())
    if isinstance(locked_value, list) and isinstance(now, list):
        return len(locked_value) == len(now) and all(map(_same, locked_value, now))
    if isinstance(locked_value, str) and isinstance(now, float):
        return locked_value == repr(now) or _number(locked_value) == now
    return bool(locked_value == now)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
