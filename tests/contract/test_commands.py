"""Commands are the modules at the top of flows/; nothing of ours imports one."""

import ast
from pathlib import Path

from tasks.shared.store.keys import PROJECT, module_name

COMMANDS = {module_name(file) for file in (PROJECT / "flows").glob("*.py") if file.name != "__init__.py"}


def imports(file: Path) -> set[str]:
    """Names of the modules, and of what is taken from them, that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_there_are_commands() -> None:
    assert {"flows.compress", "flows.compare", "flows.stage", "flows.ui"} <= COMMANDS


def test_nothing_imports_a_command() -> None:
    files = [file for folder in ("flows", "tasks", "bench") for file in (PROJECT / folder).rglob("*.py")]
    assert len(files) > 100
    found = {str(file.relative_to(PROJECT)): sorted(imports(file) & COMMANDS) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


def test_only_a_commands_own_tests_import_it() -> None:
    tests = PROJECT / "tests"
    found = {file: imports(file) & COMMANDS for file in tests.rglob("*.py")}
    own = {file: {f"flows.{file.stem.removeprefix('test_')}"} for file in (tests / "unit" / "flows").glob("test_*.py")}
    assert {str(file): names for file, names in found.items() if names - own.get(file, set())} == {}
