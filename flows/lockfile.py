"""dvc.lock and dvc.yaml read without DVC: what is recorded, and how to take a record back."""

import hashlib
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from flows.params import PARAMS, load_yaml, read_mapping, tracked_params
from flows.pipeline import split_stage, view_folder
from flows.sync import DVC
from tasks.shared.artifacts import Place
from tasks.shared.errors import StillroomError
from tasks.shared.keys import PROJECT

LOCK_FILE = PROJECT / "dvc.lock"
CACHE = PROJECT / ".dvc" / "cache"


def recorded(stage: str, key: str) -> bool:
    """Whether dvc.lock holds this very artifact for this stage as dvc.yaml has it now: nothing to record.

    The manifest holds the key and is one of the stage's outputs, so its digest in dvc.lock says which artifact was recorded.
    Takes a few milliseconds and no DVC; a dvc.lock that is missing, old, broken or of another commit is simply no record.
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


def take_back(stage: str, since: float) -> None:
    """Remove a stage's record from dvc.lock, and what DVC's run cache took for a result of it after `since`."""
    kept = {name: text for name, text in _blocks(*_stamp(LOCK_FILE)).items() if name != stage}
    text = LOCK_FILE.read_text("utf-8")
    head = text[: text.index("stages:")]
    temporary = LOCK_FILE.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(head + "stages:\n" + "".join(kept.values()) if kept else "", "utf-8")
    temporary.replace(LOCK_FILE)
    command = "cmd: python -m flows.stage {} {}\n".format(*split_stage(stage))
    for file in (CACHE / "runs").glob("*/*/*"):
        if file.stat().st_mtime >= since - 1 and command in file.read_text("utf-8"):
            file.unlink()


def lock_fault() -> str:
    """What is wrong with dvc.lock, with what to do, where DVC would show a page of YAML."""
    if not LOCK_FILE.is_file() or not LOCK_FILE.stat().st_size:
        return ""
    try:
        read_mapping(LOCK_FILE)
    except StillroomError as error:
        return str(error)
    return ""


def _stamp(path: Path) -> tuple[Path, int, int, int]:
    """The file and what tells a new version of it."""
    try:
        state = path.stat()
    except OSError:
        return path, 0, 0, 0
    return path, state.st_mtime_ns, state.st_size, state.st_ino


@lru_cache(maxsize=4)
def _blocks(path: Path, *_: int) -> dict[str, str]:
    """The text of every stage in dvc.yaml or dvc.lock: both are written by programs, so indentation tells where one ends."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    return {found[1]: found[0] for found in re.finditer(r"^  ([\w-]+):\n(?:    .*\n)+", text, re.MULTILINE)}


def _stage(path: Path, stage: str) -> dict[str, Any] | None:
    """One stage of dvc.yaml or dvc.lock, parsed alone: the whole file would take ten times as long."""
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
    """Equal, where DVC's YAML 1.2 has written 1e-05, which YAML 1.1 reads as a text."""
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
