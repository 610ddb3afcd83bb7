"""README, CONTRIBUTING and docs/ name only what exists: files, functions, commands, settings, links and their anchors."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from flows.planning.plan import STAGES
from tasks.shared.store.keys import PROJECT


def documents() -> list[Path]:
    """All documents of the project.  Raises AssertionError where docs/ was moved away."""
    found = sorted([PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *(PROJECT / "docs").rglob("*.md")])
    assert len(found) > 20, "docs/ holds no documents"
    return found


DOCUMENTS = documents()
LOG = [file for file in DOCUMENTS if file.parent.name == "log"]
CURRENT = [file for file in DOCUMENTS if file not in LOG]
"""The log may name what is gone."""
IDS = [file.relative_to(PROJECT).as_posix() for file in DOCUMENTS]
MOST_LINES = 150
"""Of README."""
HOME = ("artifacts", "bench", "conf", "docs", "flows", "tasks", "tests")
GENERATED = ("artifacts",)
"""Folders that a run makes: what a document says of them is checked by the tests that run."""

WRITTEN = frozenset({"dvc.lock", "mine.yaml", "performance.md", "materials.md"})
"""Files that a run or the user writes."""

OTHERS = frozenset({"my_conf", "my_recipe"})
"""Names of the user's own."""

CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PLACE = re.compile(r"(?<![\w/.<>-])(?:[\w.-]+/)+[\w.-]*|(?<![\w/.-])[\w-]+\.(?:py|md|yaml|toml|lock)\b")
"""A path: folders with or without a file, or the name of a file."""
FUNCTION = re.compile(r"((?:flows|tasks|bench|tests)/[\w/]+\.py):(\w+(?:\.\w+)?)")
MODULE = re.compile(r"python -m ((?:flows|bench)[\w.]*)")


def prose(text: str) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def slug(heading: str) -> str:
    """The anchor of a heading on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")


@cache
def anchors(file: Path) -> frozenset[str]:
    """Anchors of a document.  Fails if two headings share one: a link would lead to the first."""
    found = [slug(heading) for heading in re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)]
    assert len(found) == len(set(found)), f"{file}: two headings with one anchor"
    return frozenset(found)


@cache
def definitions(file: Path) -> frozenset[str]:
    """Functions, classes, methods and constants of a module, methods as Class.method."""
    found: set[str] = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return frozenset(found)


def named_paths(file: Path) -> set[str]:
    """Paths below the project that a document names in backticks: those that start with one of its folders, and file names."""
    found = {path for code in CODE.findall(prose(file.read_text("utf-8"))) for path in PLACE.findall(code)}
    return {
        path.rstrip("/.")
        for path in found
        if "/" not in path or (path.split("/")[0] in HOME and path.split("/")[0] not in GENERATED)
    }


def exists(path: str) -> bool:
    """Return True if a path is there; a bare file name may be anywhere in the project."""
    if "/" in path:
        return (PROJECT / path).exists()
    return (PROJECT / path).exists() or any(found.name == path for folder in HOME for found in tree(folder))


@cache
def tree(folder: str) -> tuple[Path, ...]:
    """All files below one of the project's folders."""
    return tuple(file for file in (PROJECT / folder).rglob("*") if file.is_file())


def test_readme_is_short() -> None:
    lines = (PROJECT / "README.md").read_text("utf-8").splitlines()
    assert 80 < len(lines) <= MOST_LINES


def test_the_documents_name_enough_to_check() -> None:
    text = "\n".join(file.read_text("utf-8") for file in DOCUMENTS)
    assert sum(len(named_paths(file)) for file in DOCUMENTS) > 40
    assert len(FUNCTION.findall(text)) > 20 and len(LINK.findall(text)) > 100 and len(MODULE.findall(text)) > 20


@pytest.mark.parametrize("file", DOCUMENTS, ids=IDS)
def test_every_named_path_exists(file: Path) -> None:
    assert [path for path in sorted(named_paths(file)) if path not in WRITTEN and not exists(path)] == []


@pytest.mark.parametrize("file", DOCUMENTS, ids=IDS)
def test_every_named_function_exists(file: Path) -> None:
    named = FUNCTION.findall(file.read_text("utf-8"))
    assert [f"{module}:{name}" for module, name in named if name not in definitions(PROJECT / module)] == []


@pytest.mark.parametrize("file", DOCUMENTS, ids=IDS)
def test_every_named_command_exists(file: Path) -> None:
    modules = {name.rstrip(".") for name in MODULE.findall(file.read_text("utf-8"))}
    for name in sorted(modules):
        source = PROJECT.joinpath(*name.split(".")).with_suffix(".py")
        assert source.is_file() and 'if __name__ == "__main__":' in source.read_text("utf-8"), name
        assert source.parent in (PROJECT / "flows", PROJECT / "bench"), f"{name} is no command"


@pytest.mark.parametrize("file", DOCUMENTS, ids=IDS)
def test_every_link_leads_somewhere(file: Path) -> None:
    for link in LINK.findall(prose(file.read_text("utf-8"))):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("file", DOCUMENTS, ids=IDS)
def test_every_named_technique_exists(file: Path) -> None:
    named = re.findall(rf"`({'|'.join(STAGES)})/(\w+)`", file.read_text("utf-8"))
    assert [name for stage, name in named if not (PROJECT / "conf" / stage / f"{name}.yaml").is_file()] == []


@pytest.mark.parametrize("file", DOCUMENTS, ids=IDS)
def test_every_named_runtime_setting_exists(file: Path) -> None:
    settings = yaml.safe_load((PROJECT / "conf" / "runtime" / "local.yaml").read_text("utf-8"))
    named = set(re.findall(r"\bruntime\.(\w+)\b", file.read_text("utf-8"))) - {"py", "yaml", "html"}
    assert named <= set(settings)


@cache
def words() -> frozenset[str]:
    """Every word of the project's code and settings."""
    files = [file for folder in ("flows", "tasks", "bench", "conf", "tests") for file in tree(folder)]
    files = [file for file in files if file.suffix in {".py", ".yaml", ".jinja"} and file != Path(__file__)]
    assert len(files) > 200
    found = {word for file in files for word in re.findall(r"\w+", file.read_text("utf-8"))}
    return frozenset(found | {file.stem for file in tree("tests")})


@pytest.mark.parametrize("file", CURRENT, ids=[file.relative_to(PROJECT).as_posix() for file in CURRENT])
def test_every_named_setting_or_function_is_in_the_code(file: Path) -> None:
    named = {
        name
        for code in CODE.findall(prose(file.read_text("utf-8")))
        for name in re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", code)
    }
    assert sorted(named - words() - OTHERS) == []


def test_the_log_index_lists_every_entry() -> None:
    assert LOG
    index = (PROJECT / "docs" / "LOG.md").read_text("utf-8")
    for file in LOG:
        entries = anchors(file) - {slug(file.read_text("utf-8").splitlines()[0].removeprefix("# "))}
        assert entries and entries == set(re.findall(rf"log/{re.escape(file.name)}#([\w-]+)", index))
