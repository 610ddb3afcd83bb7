"""Lookup of harness tasks by name: built-in, the user's folder, the harness's library.

Finds everything that is wrong before a model is made: names, files, data that only a hub has, code in a folder.
"""

import difflib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tasks.evaluate.benchmark.benchmarks import BENCHMARKS
from tasks.shared.errors import ConfigError
from tasks.shared.paths import sha256_file, user_path

Origin = Literal["ours", "folder", "library"]
INCLUDED = re.compile(r"""(?:^|[{,])\s*["']?include["']?\s*:\s*["']?([^\s"',}]+)""", re.MULTILINE)
"""An include of another task file."""
FORMATS = frozenset({"json", "csv", "text", "parquet", "arrow"})
"""Values of a task's dataset_path that read local files."""


@dataclass(frozen=True)
class SelectedTask:
    """A task with its definitions: one, or those of its group; none for a built-in benchmark."""

    name: str
    origin: Origin
    definitions: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class TaskSources:
    """Places to look for tasks.

    data: folder with the built-in benchmarks' files.  include: folder with the user's task files; empty for none.
    """

    data: str
    include: str

    @property
    def folder(self) -> Path:
        """Folder with the user's task files."""
        return user_path(self.include)

    def find(self, names: Sequence[str], where: str) -> Iterator[SelectedTask | ConfigError]:
        """Yield each name's task, or an error.

        The library is opened only for a name found nowhere else.
        """
        own = folder_tasks(self.folder) if self.include else {}
        for name in names:
            if name in BENCHMARKS and name in own:
                yield ConfigError(
                    f"{where}.tasks",
                    f"{name} is in {self.include}, but also built in",
                    "unique task names",
                    "rename yours",
                )
            elif name in BENCHMARKS:
                yield SelectedTask(name, "ours")
            elif name in own:
                yield SelectedTask(name, "folder", tuple(definitions(name, own)))
            elif name in (library := library_tasks()):
                yield SelectedTask(name, "library", tuple(definitions(name, library)))
            else:
                near = difflib.get_close_matches(name, [*BENCHMARKS, *own, *library], 3)
                yield ConfigError(
                    f"{where}.tasks", f"no task {name!r}", f"{', '.join(BENCHMARKS)}, a task of {where}.include, or one of lm-eval's",
                    f"did you mean {' or '.join(near)}?" if near else "",
                )  # fmt: skip

    def problems(self, names: Sequence[str], code: bool, where: str) -> Iterator[ConfigError]:
        """Yield all errors of the chosen tasks, without reading data or a hub.

        code: task files may run Python from their folder.
        """
        if self.include and not self.folder.is_dir():
            yield ConfigError(
                f"{where}.include",
                f"{self.include}: no such folder",
                "a folder with task files (*.yaml)",
                "correct the path",
            )
            return
        if (
            self.include
            and not code
            and (running := [file.name for file in yaml_files(self.folder) if b"!function" in file.read_bytes()])
        ):
            yield ConfigError(
                f"{where}.include", f"{', '.join(running)} would run Python code of that folder (!function)", "task files without code",
                f"read the code, then {where}.include_code=true",
            )  # fmt: skip
        if self.include and (strange := outside_includes(self.folder)):
            yield ConfigError(
                f"{where}.include",
                ", ".join(strange),
                "task files within the folder",
                "copy the included files into it",
            )
        found = list(self.find(names, where))
        yield from (item for item in found if isinstance(item, ConfigError))
        chosen = [item for item in found if isinstance(item, SelectedTask)]
        yield from self._absent(chosen, where)
        for task in chosen:
            yield from self._unfit(task, where)

    def _absent(self, chosen: Sequence[SelectedTask], where: str) -> Iterator[ConfigError]:
        """Yield one error that lists the missing files of all built-in benchmarks."""
        lacking = {
            task.name: lacks for task in chosen
            if task.origin == "ours" and (lacks := BENCHMARKS[task.name].missing(user_path(self.data)) if self.data else list(BENCHMARKS[task.name].files))
        }  # fmt: skip
        if lacking:
            lines = "".join(
                f"\n    {name}: {', '.join(files[:2])}{f' and {len(files) - 2} more' if len(files) > 2 else ''}, from {BENCHMARKS[name].origin}"
                for name, files in lacking.items()
            )
            yield ConfigError(
                f"{where}.data", (f"{self.data} lacks files of" if self.data else "not set; required for") + f" {len(lacking)} tasks{lines}",
                "a folder with these files, as published",
                f"{where}.data=/your/benchmarks, or leave tasks out: {where}.tasks=[...]",
            )  # fmt: skip

    def _unfit(self, task: SelectedTask, where: str) -> Iterator[ConfigError]:
        base = self.folder if task.origin == "folder" else Path()
        files = [local_files(config, base) for config in task.definitions]
        far = [
            str(config.get("dataset_path"))
            for config, local in zip(task.definitions, files, strict=True)
            if local is None
        ]
        absent = list(dict.fromkeys(dataset for dataset in far if not is_fetched(dataset)))
        if absent and not network_allowed():
            yield ConfigError(
                f"{where}.tasks", f"{task.name} needs the network: {', '.join(absent[:3])}{' ...' if absent[3:] else ''} not in the local cache",
                "tasks on local files, or data fetched before",
                f"HF_HUB_OFFLINE=0 once, or a task file of your own with dataset_path: json in {where}.include",
            )  # fmt: skip
        if any(config.get("unsafe_code") for config in task.definitions):
            yield ConfigError(
                f"{where}.tasks",
                f"{task.name} runs code written by the model",
                "tasks that run no code",
                "leave it out",
            )
        lost = list(dict.fromkeys(str(file) for local in files for file in local or () if not _exists(file, base)))
        if lost:
            yield ConfigError(
                f"{where}.include",
                f"{task.name} reads {', '.join(lost)}, not in {self.include}",
                "existing files",
                "correct data_files",
            )

    def sources(self, names: Sequence[str]) -> tuple[Path, ...]:
        """Return existing files and folders that decide the tasks' items: data and task files."""
        ours = [file for name in names if name in BENCHMARKS and self.data for file in BENCHMARKS[name].files]
        found = [path for file in ours if (path := user_path(self.data) / file).is_file()]
        if self.include and self.folder.is_dir():
            own = folder_tasks(self.folder)
            files = {
                file
                for name in names
                if name in own
                for config in definitions(name, own)
                for file in local_files(config, self.folder) or ()
            }
            inside = self.folder.resolve()
            meant = {
                path.resolve()
                for file in files
                for path in ([file] if file.is_absolute() else self.folder.glob(str(file)))
            }
            found += [self.folder, *sorted(path for path in meant if path.exists() and not path.is_relative_to(inside))]
        return tuple(dict.fromkeys(found))

    def content(self, task: SelectedTask) -> str:
        """Return a digest of everything that decides the task's items, for the cache.

        Empty for a library task, which its version and the hub's cache identify.
        """
        if task.origin == "library":
            return ""
        named = self.sources([task.name])
        if task.origin == "ours":
            named = tuple(path for path in named if path != self.folder)
        files = [
            file for path in named for file in ([path] if path.is_file() else sorted(path.rglob("*"))) if file.is_file()
        ]
        return hashlib.sha256("".join(sha256_file(file) for file in files).encode()).hexdigest()


def folder_tasks(folder: Path) -> Mapping[str, Any]:
    """Return tasks and groups of a folder by name, as in the harness's index."""
    from tasks.evaluate.models_under_test.harness import quiet_harness

    with quiet_harness():
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=str(folder), include_defaults=False).task_index


@cache
def library_tasks() -> Mapping[str, Any]:
    """Return the harness library's index; this reads some 14,000 files and takes seconds."""
    from tasks.evaluate.models_under_test.harness import quiet_harness

    with quiet_harness():
        from lm_eval.tasks import TaskManager

        return TaskManager().task_index


def definitions(name: str, tasks: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the definitions of a task, of a group's tasks, or of all tasks with a tag."""
    entry = tasks.get(name)
    if entry is None:
        return
    members = (
        (entry.cfg or {}).get("task")
        if entry.kind.name == "GROUP"
        else sorted(entry.tags)
        if entry.kind.name == "TAG"
        else None
    )
    if members is None:
        yield entry.cfg or {}
        return
    for member in members if isinstance(members, list) else [members]:
        inner = member if isinstance(member, str) else member.get("task", "")
        if isinstance(member, dict) and "dataset_path" in member:
            yield member
        elif isinstance(inner, str):
            yield from definitions(inner, tasks)


def local_files(config: Mapping[str, Any], base: Path) -> list[Path] | None:
    """Return the files that a task reads; None if its data is on a hub or a web server."""
    place, options = str(config.get("dataset_path") or ""), config.get("dataset_kwargs") or {}
    if "custom_dataset" in config or "class" in config:
        return []
    if place not in FORMATS:
        return [Path(place)] if place and (base / place).exists() else None
    named = options.get("data_files") or options.get("data_dir") or []
    files = [
        str(file)
        for part in (named.values() if isinstance(named, Mapping) else [named])
        for file in ([part] if isinstance(part, str) else part)
    ]
    return None if any("://" in file for file in files) else [Path(file) for file in files]


def _exists(file: Path, base: Path) -> bool:
    """Return True if the file, or one that matches its pattern, exists."""
    return file.exists() if file.is_absolute() else any(base.glob(str(file)))


def yaml_files(folder: Path) -> list[Path]:
    """Return a folder's task files and the files that they may include."""
    return sorted(file for ending in ("*.yaml", "*.yml") for file in folder.rglob(ending))


def outside_includes(folder: Path) -> list[str]:
    """Return includes of files outside the folder, which the checks do not cover."""
    named = (
        (file, part)
        for file in yaml_files(folder)
        for part in INCLUDED.findall(file.read_text("utf-8", errors="replace"))
    )
    return [
        f"{file.name} includes {part}"
        for file, part in named
        if not (file.parent / part).resolve().is_relative_to(folder.resolve())
    ]


def network_allowed() -> bool:
    """Return True if the user allows downloads from a hub; all commands are offline by default."""
    return os.environ.get("HF_HUB_OFFLINE", "1").upper() not in {"1", "ON", "YES", "TRUE"}


def is_fetched(dataset: str) -> bool:
    """Return True if a hub data set seems to be in the local caches.

    Only loading shows if it is complete.
    """
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub")) / f"datasets--{dataset.replace('/', '--')}"
    made = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")) / dataset.replace("/", "___")
    return hub.is_dir() or made.is_dir()
