"""Files of the project by pattern; a pattern that matches nothing fails the test that collects by it."""

import ast
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from flows.planning.plan import STAGES
from tasks.shared.store.keys import PROJECT


def matching(*patterns: str, root: Path = PROJECT) -> list[Path]:
    """Files below `root` that match the glob patterns, sorted.  Raises AssertionError for a pattern without a match."""
    found: set[Path] = set()
    for pattern in patterns:
        matches = {path for path in root.glob(pattern) if "__pycache__" not in path.parts}
        assert matches, f"{pattern} matches no file of {root}: the folder moved, or the pattern is misspelled"
        found |= matches
    return sorted(found)


def technique_options(stages: Sequence[str] = STAGES) -> list[Path]:
    """The YAML files of techniques, conf/<stage>/<technique>.yaml, of every stage given."""
    return matching(*(f"conf/{stage}/*.yaml" for stage in stages))


@cache
def tracked_files() -> tuple[Path, ...]:
    """Every text file that git tracks or would add, as a path below the project."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    found = sorted(Path(name) for name in set(listed.split("\0")) if name and (PROJECT / name).is_file())
    assert found, "git lists no file of the project"
    return tuple(found)


@cache
def parsed(file: Path) -> ast.Module:
    """Syntax tree of a Python file below the project."""
    return ast.parse((PROJECT / file).read_text("utf-8"))


def relative(files: list[Path]) -> list[Path]:
    """The files as paths below the project."""
    return [file.relative_to(PROJECT) for file in files]
