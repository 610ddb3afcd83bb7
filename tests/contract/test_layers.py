"""Which part of the project may import which.  Imports under `if TYPE_CHECKING` do not count: they never run.

Ruff (TID251 in pyproject.toml) keeps Prefect, Hydra, DVC and MLflow out of everything but flows/; here each keeps to its folder there.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from flows.planning.plan import STAGES
from tasks.shared.store.keys import PROJECT
from tests.project_files import matching, parsed, relative

FILES = relative(matching("flows/**/*.py", "tasks/**/*.py"))
HOMES: Mapping[str, tuple[str, ...]] = {
    "mlflow": ("flows/tracking/",),
    "prefect": ("flows/orchestration/", "flows/deploy.py"),
    "dvc": ("flows/versioning/",),
    "hydra": ("flows/planning/config.py", "flows/compress.py"),
    "omegaconf": ("flows/planning/config.py", "flows/compress.py"),
}
"""By tool: the folders and files that may import it."""


def module_name(file: Path) -> str:
    """Dotted name of a Python file below the project."""
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for file in FILES}
COMMANDS = {name for name, file in MODULES.items() if len(file.parts) == 2 and file.parts[0] == "flows"} - {"flows"}


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a tree except the bodies of `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield other
                yield from runtime_nodes(other)
        else:
            yield node
            yield from runtime_nodes(node)


@cache
def imported_names(file: Path) -> frozenset[str]:
    """Dotted names that a file imports when it runs, at its top or inside a function."""
    found: set[str] = set()
    for node in runtime_nodes(parsed(file)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update({node.module} | {f"{node.module}.{alias.name}" for alias in node.names})
    return frozenset(found)


def imported_modules(file: Path) -> set[str]:
    """The project's own modules that a file imports."""
    return {name for name in imported_names(file) if name in MODULES}


def folder(file: Path) -> str:
    """Dotted name of the folder that holds a file."""
    return ".".join(file.parent.parts)


def test_the_analysis_sees_imports() -> None:
    tree = ast.parse(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a\nelse:\n    import b\ndef f():\n    import c"
    )
    names = {alias.name for node in runtime_nodes(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert names == {"b", "c"}
    assert {"flows.compress", "flows.stage"} <= COMMANDS
    assert "flows.running.work" in imported_modules(Path("flows/stage.py"))
    assert set(STAGES) == {file.parent.name for file in matching("tasks/*/__init__.py")} - {"shared"}


def test_only_commands_are_at_the_top_of_flows() -> None:
    """A module directly below flows/ can be started with `python -m`."""
    texts = {name: (PROJECT / MODULES[name]).read_text("utf-8") for name in sorted(COMMANDS)}
    assert [name for name, text in texts.items() if '__name__ == "__main__"' not in text] == []


def test_nothing_imports_a_command() -> None:
    importers = {
        file.as_posix(): imported_modules(file) & COMMANDS for file in [*FILES, *relative(matching("bench/*.py"))]
    }
    held = {file: commands for file, commands in importers.items() if commands}
    assert held == {}, "move the function that both need to a folder below flows/"


@pytest.mark.parametrize("tool", HOMES)
def test_each_tool_has_one_home(tool: str) -> None:
    importers = [file.as_posix() for file in FILES if any(name.split(".")[0] == tool for name in imported_names(file))]
    assert [file for file in importers if not file.startswith(HOMES[tool])] == []


def test_tasks_import_neither_flows_nor_another_stage() -> None:
    """A stage imports itself and tasks/shared; tasks/shared imports no stage."""
    outside = [
        f"{file} imports {name}"
        for file in FILES
        if file.parts[0] == "tasks" and len(file.parts) > 2
        for name in sorted(imported_modules(file) - {"tasks"})
        if name.split(".")[:2] not in (["tasks", "shared"], ["tasks", file.parts[1]])
    ]
    assert outside == [], "move the code that both need to tasks/shared"


def test_folders_import_each_other_in_no_circle() -> None:
    edges: dict[str, dict[str, str]] = {}
    for file in FILES:
        for name in sorted(imported_modules(file)):
            if (other := folder(MODULES[name])) != folder(file):
                edges.setdefault(folder(file), {})[other] = f"{file} imports {name}"
    circles = [reason for start in edges for end, reason in edges[start].items() if start in reachable(edges, end)]
    assert circles == []


def reachable(edges: Mapping[str, Mapping[str, str]], start: str) -> set[str]:
    """Folders that `start` imports, directly or through others."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for other in edges.get(waiting.pop(), {}):
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return seen
