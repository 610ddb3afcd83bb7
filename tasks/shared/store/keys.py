"""When is a step the same step?  Digests of content, of code, and the key over both.

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
"""A file changed twice within one tick of the file system's clock keeps its mtime, so younger files are not remembered."""
REMEMBERED = 200_000
"""Files to remember at the most, the newest: about 20 MB of memory."""


def digest_json(value: Any) -> str:
    """Sha256 of a value's canonical JSON."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    ).hexdigest()


class Digests:
    """Content digests of files and folders, remembered by (device, inode, size, mtime): an unchanged tree is not read again.

    A renamed or hard-linked file keeps its inode, so it is not read again either.
    memory: a JSON file; a missing or damaged one only costs time.  trust: False reads every file once, whatever is remembered,
    and so finds what changed without a new mtime (a failing disk, a copy that keeps times).  Safe to use from several threads.
    """

    def __init__(self, memory: Path, trust: bool = True) -> None:
        self.memory = memory
        self.known = self._read()
        self.added: dict[str, list[Any]] = {}
        self.trusted: set[str] | None = None if trust else set()

    def file(self, path: Path) -> str:
        """Sha256 of one file."""
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
        """Digest of a file, or of all files below a folder with their relative names."""
        if path.is_file():
            return self.file(path)
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return digest_json([[file.relative_to(path).as_posix(), self.file(file)] for file in files])

    def save(self) -> None:
        """Add what is new to the memory, all or nothing; of two processes that race, one's news may be read again next time."""
        added = dict(self.added)
        if not added:
            return
        self.known = self._read() | added
        newest = dict(list(self.known.items())[-REMEMBERED:])
        try:
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.memory, json.dumps(newest))
        except OSError:  # a full disk, or one that cannot be written: what is forgotten only costs time
            return
        for name, entry in added.items():
            if self.added.get(name) is entry:
                del self.added[name]

    def load(self) -> None:
        """Take over what other processes have added to the memory since."""
        self.known = self.known | self._read()

    def _read(self) -> dict[str, list[Any]]:
        try:
            found = json.loads(self.memory.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        entries = found.items() if isinstance(found, dict) else ()
        return {name: entry for name, entry in entries if isinstance(entry, list) and len(entry) == 3}


def module_file(module: str) -> Path | None:
    """The source file of one of our modules, or None for anything else."""
    base = PROJECT.joinpath(*module.split("."))
    if base.with_suffix(".py").is_file():
        return base.with_suffix(".py")
    return base / "__init__.py" if (base / "__init__.py").is_file() else None


def module_name(file: Path) -> str:
    """The module of one of our source files."""
    return ".".join(file.relative_to(PROJECT).with_suffix("").parts)


def _imported(source: Path) -> set[str]:
    """Names of our own modules that a file imports, at top level or inside functions, or starts as a child process.

    A child is named by its module ("tasks.evaluate.timing.probe") or by its file beside this one ("llama_child.py").
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
    return {name for name in names if name.split(".")[0] == "tasks" and "." in name}


UNKEYED = frozenset({"tasks.shared.progress", "tasks.shared.errors"})
"""Modules that cannot change an artifact: how progress looks and how errors read."""


@cache
def code_files(module: str) -> tuple[Path, ...]:
    """Every file of ours that a technique's module runs or reads: its import closure, and the data files of its own stage.

    The same list is the `deps` of the step in dvc.yaml.
    """
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        source = module_file(name)
        if name in seen or name in UNKEYED or source is None or source.name == "__init__.py":
            continue
        seen.add(name)
        waiting.extend(_imported(source))
    files = {file for name in seen if (file := module_file(name)) is not None}
    own = module_file(module)
    if own is not None:
        files.update(data_files(own.parent))
    return tuple(sorted(files))


def data_files(folder: Path) -> set[Path]:
    """Data files of a stage (templates, a knowledge base): everything in its folder that is not Python or hidden."""
    return {
        file
        for file in folder.rglob("*")
        if file.is_file()
        and file.suffix not in {".py", ".pyc"}
        and not any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)
    }


def code_digest(module: str) -> str:
    """Digest over the files of `code_files`, by content."""
    return digest_json([[file.relative_to(PROJECT).as_posix(), sha256_file(file)] for file in code_files(module)])


def library_versions(libraries: Iterable[str]) -> dict[str, str]:
    """Installed versions without local build tags ("2.13.0+cpu" computes what "2.13.0" does as far as a key can know)."""
    found: dict[str, str] = {}
    for name in sorted(libraries):
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; an empty mapping stays as it is."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat.update(flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def step_key(identity: Mapping[str, Any], code: str, inputs: Mapping[str, list[list[str]]]) -> str:
    """The step's key.  identity: technique, settings, seed, versions.  inputs: port -> [[name, content digest], ...]."""
    return digest_json({"identity": identity, "code": code, "inputs": inputs})
