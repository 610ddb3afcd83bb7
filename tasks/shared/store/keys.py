"""Keys of steps, and digests of content and code.

key = sha256(technique, settings, seed, library versions, digest of the code it runs, names and digests of its inputs).
"""

import ast
import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tasks.shared.files import write_text
from tasks.shared.paths import PROJECT, sha256_file

CLOCK_TICK_NS = 20_000_000
"""A second change within one tick of the file system's clock keeps the mtime, so digests of younger files are not stored."""
REMEMBERED = 200_000
"""Maximum number of stored digests, the newest: about 20 MB of memory."""


def digest_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    ).hexdigest()


class Digests:
    """Content digests of files and folders, cached by (device, inode, size, mtime); thread-safe.

    A renamed or hard-linked file keeps its inode, so it is not read again.
    memory: JSON file of the cache; if it is missing or damaged, files are read again.
    trust: False reads every file once in spite of the cache, to find changes without a new mtime (a failing disk, a copy that
    preserves times).
    """

    def __init__(self, memory: Path, trust: bool = True) -> None:
        self.memory = memory
        self.known = self._read()
        self.added: dict[str, list[Any]] = {}
        self.trusted: set[str] | None = None if trust else set()

    def file(self, path: Path) -> str:
        """SHA-256 of a file."""
        state = path.stat()
        name, stamp = f"{state.st_dev}:{state.st_ino}", [state.st_size, state.st_mtime_ns]
        entry = self.added.get(name) or self.known.get(name)
        if entry is not None and entry[:2] == stamp and (self.trusted is None or name in self.trusted):
            return str(entry[2])
        digest = sha256_file(path)
        if time.time_ns() - state.st_mtime_ns > CLOCK_TICK_NS:
            self.added[name] = [*stamp, digest]
            if self.trusted is not None:
                self.trusted.add(name)
        return digest

    def tree(self, path: Path) -> str:
        """Digest of a file, or of all files below a folder and their relative names."""
        if path.is_file():
            return self.file(path)
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return digest_json([[file.relative_to(path).as_posix(), self.file(file)] for file in files])

    def save(self) -> None:
        """Write new digests to the cache file atomically.

        If two processes race, one's digests are lost and computed again next time.
        """
        added = dict(self.added)
        if not added:
            return
        self.known = self._read() | added
        newest = dict(list(self.known.items())[-REMEMBERED:])
        try:
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.memory, json.dumps(newest))
        except OSError:  # a full or read-only disk: lost digests are computed again
            return
        for name, entry in added.items():
            if self.added.get(name) is entry:
                del self.added[name]

    def load(self) -> None:
        """Load digests that other processes have added to the cache file."""
        self.known = self.known | self._read()

    def _read(self) -> dict[str, list[Any]]:
        try:
            found = json.loads(self.memory.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        entries = found.items() if isinstance(found, dict) else ()
        return {name: entry for name, entry in entries if isinstance(entry, list) and len(entry) == 3}


def module_file(module: str) -> Path | None:
    """Source file of a module of this project; None for any other module."""
    base = PROJECT.joinpath(*module.split("."))
    if base.with_suffix(".py").is_file():
        return base.with_suffix(".py")
    return base / "__init__.py" if (base / "__init__.py").is_file() else None


def module_name(file: Path) -> str:
    """Module name of a source file of this project."""
    return ".".join(file.relative_to(PROJECT).with_suffix("").parts)


@cache
def _imported(source: Path, changed: int) -> frozenset[str]:
    """Names of the project's modules that a file imports anywhere or starts as a child process.

    A child is named by its module ("tasks.evaluate.timing.probe") or by a file in the same folder ("llama_child.py").
    changed: the file's mtime in nanoseconds; most files belong to several techniques, and are parsed once.
    """
    names: set[str] = set()
    package = ".".join(source.relative_to(PROJECT).parts[:-1])
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"tasks(\.\w+)+", node.value):
                names.add(node.value)
            elif re.fullmatch(r"\w+\.py", node.value):
                names.add(f"{package}.{node.value.removesuffix('.py')}")
    ours = (name for name in names if name.split(".")[0] == "tasks" and "." in name)
    return frozenset(name for name in ours if module_file(name) is not None)


UNKEYED = frozenset({"tasks.shared.progress", "tasks.shared.errors"})
"""Modules that cannot change an artifact: display of progress, and errors."""


@cache
def code_files(module: str) -> tuple[Path, ...]:
    """Project files that a technique depends on: its import closure and its stage's data files.

    The step's `deps` in dvc.yaml are the same list.
    """
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or name in UNKEYED:
            continue
        source = module_file(name)
        if source is None or source.name == "__init__.py":
            continue
        seen.add(name)
        waiting.extend(_imported(source, source.stat().st_mtime_ns))
    files = {file for name in seen if (file := module_file(name)) is not None}
    own = module_file(module)
    if own is not None:
        files.update(data_files(own.parent))
    return tuple(sorted(files))


def data_files(folder: Path) -> set[Path]:
    """Data files of a stage (templates, a knowledge base): all files but Python and hidden ones."""
    return {
        file
        for file in folder.rglob("*")
        if file.is_file()
        and file.suffix not in {".py", ".pyc"}
        and not any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)
    }


def code_digest(module: str) -> str:
    """Digest of the contents of `code_files`."""
    return digest_json([[file.relative_to(PROJECT).as_posix(), sha256_file(file)] for file in code_files(module)])


def library_versions(libraries: Iterable[str]) -> dict[str, str]:
    """Installed versions without build tags: "2.13.0+cpu" and "2.13.0" give the same key."""
    found: dict[str, str] = {}
    for name in sorted(libraries):
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted keys; an empty mapping is kept as a value."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat.update(flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def step_key(identity: Mapping[str, Any], code: str, inputs: Mapping[str, list[list[str]]]) -> str:
    """Key of a step.

    identity: technique, settings, seed, versions.
    inputs: port -> [[name, content digest], ...].
    """
    return digest_json({"identity": identity, "code": code, "inputs": inputs})
