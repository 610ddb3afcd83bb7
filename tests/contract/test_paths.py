"""Every path, file and module that code or settings name exists, and every glob of the tests matches something.

Of the tests only comments and docstrings are read: their code names files that they write themselves.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tasks.shared.store.keys import PROJECT
from tests.project_files import matching, parsed, relative, tracked_files

SETTINGS = {"Makefile", "pyproject.toml", "params.yaml", "dvc.yaml"}
FILES = [
    file for file in tracked_files() if file.parts[0] in {"flows", "tasks", "bench", "conf"} or str(file) in SETTINGS
]
PATH = re.compile(r"(?<![\w./-])(?:flows|tasks|bench|conf|tests|docs)/[\w./<>*{}-]*")
FILE = re.compile(r"(?<![\w./{}<>*-])[\w-]+\.(?:py|jinja|css|md|toml|yaml)\b(?!\.)")
MODULE = re.compile(r"(?<![\w./-])(?:flows|tasks|bench)(?:\.[A-Za-z_]\w*)+")
WRITTEN = {
    "multirun.yaml",  # Hydra's, in a sweep's folder
    "profiles.toml",  # Prefect's
    "chat_template.jinja",  # a model's
    "performance.md",  # a report's
    "materials.md",  # a report's
    "conf/recipe/chain.yaml",  # a benchmark's
    "tasks.curate.toy",
    "tasks.distill.toy",
    "tasks.prune.toy",
}
"""Files and modules that a run, a benchmark or another program writes."""
NOT_MODULES = {"tasks.get", "tasks.items", "tasks.json"}
"""Attributes of local variables, and a corpus' file, that are called like a package."""
NAMES = {file.name for file in tracked_files()}


def path_exists(written: str) -> bool:
    """Return True if a path, with any text for `<name>`, `{name}` and `*`, is a file or folder, its suffix perhaps left out."""
    pattern = re.sub(r"<[^>]*>|\{[^}]*\}", "*", written.rstrip("./"))
    return any(any(PROJECT.glob(candidate)) for candidate in (pattern, f"{pattern}.*"))


def module_exists(written: str) -> bool:
    """Return True for a module, or for a name at the top of one and an attribute of that."""
    parts = written.split(".")
    for length in range(len(parts), 0, -1):
        place = PROJECT.joinpath(*parts[:length])
        if place.is_dir() or place.with_suffix(".py").is_file():
            rest = parts[length:]
            source = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
            return not rest or len(rest) <= 2 and source.is_file() and rest[0] in names_of(source)
    return False


def names_of(file: Path) -> set[str]:
    """Names at the top of a module: what it defines, assigns and imports."""
    found: set[str] = set()
    for node in parsed(file.relative_to(PROJECT)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found.update(alias.asname or alias.name for alias in node.names)
        else:
            found.update(item.id for item in ast.walk(node) if isinstance(item, ast.Name))
    return found


def prose_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a file; of a test's file those of its comments and docstrings."""
    text = (PROJECT / file).read_text("utf-8")
    if file.parts[0] != "tests":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        docstring = (
            token.type == tokenize.STRING
            and token.string.startswith('"""')
            and not token.line[: token.start[1]].strip()
        )
        if docstring or token.type == tokenize.COMMENT:
            yield from enumerate(token.string.splitlines(), token.start[0])


def missing(file: Path) -> Iterator[str]:
    """Every name of a path, file or module in a file that leads nowhere."""
    for number, line in prose_lines(file):
        absent = [name for name in PATH.findall(line) if not path_exists(name)]
        absent += [name for name in FILE.findall(line) if name not in NAMES]
        absent += [name for name in MODULE.findall(line) if name not in NOT_MODULES and not module_exists(name)]
        yield from (f"{file}:{number} {name}" for name in absent if name not in WRITTEN)


def test_what_code_and_settings_name_exists() -> None:
    assert path_exists("conf/<stage>/<technique>.yaml") and path_exists("tasks/shared/errors")
    assert not path_exists("conf/<stage>/no_such.yaml") and not path_exists("tasks/nowhere.py")
    assert module_exists("tasks.shared.errors.StillroomError") and not module_exists("tasks.shared.errors.NoSuchError")
    assert module_exists("flows.compress") and not module_exists("tasks.nowhere")
    found = [name for file in FILES for name in missing(file)]
    assert found == [], "\n".join(found)


def test_files_are_collected_by_globs_that_must_match() -> None:
    """Tests collect files by tests/project_files.py: another glob could match nothing, and its tests would vanish unseen."""
    found = [
        f"{file}:{call.lineno}"
        for file in relative(matching("tests/**/*.py"))
        for call in at_import(parsed(file))
        if isinstance(call.func, ast.Attribute) and call.func.attr in {"glob", "rglob", "iterdir"}
    ]
    assert found == [], "use matching() or technique_options() of tests/project_files.py"


def at_import(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls that run when a module is imported: at its top and in decorators, not in the bodies of functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call):
            yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for decorator in node.decorator_list:
                yield from (item for item in ast.walk(decorator) if isinstance(item, ast.Call))
        else:
            yield from at_import(node)


def test_a_glob_without_a_match_fails() -> None:
    try:
        matching("conf/no_such_stage/*.yaml")
    except AssertionError as error:
        assert "matches no file" in str(error)
    else:
        raise AssertionError("a pattern without a match must fail")
