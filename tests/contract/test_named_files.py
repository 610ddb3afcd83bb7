"""Files that code, decisions and the package's metadata name exist."""

import re
import tomllib

from tasks.shared.store.keys import PROJECT

CITING = sorted([
    *(file for folder in ("flows", "tasks", "bench", "tests") for file in (PROJECT / folder).rglob("*.py")),
    *(PROJECT / "docs" / "decisions").glob("*.md"),
])  # fmt: skip
NAMED = re.compile(r"(?<![\w/.-])(?:docs|tests)/[\w/-]+\.(?:md|py)\b")
"""A file of docs/ or tests/, as prose names it."""


def test_every_document_and_test_that_is_cited_exists() -> None:
    cited = {(file.relative_to(PROJECT), name) for file in CITING for name in NAMED.findall(file.read_text("utf-8"))}
    assert len(CITING) > 100 and cited
    assert [f"{file}: {name}" for file, name in sorted(cited) if not (PROJECT / name).is_file()] == []


def test_the_license_is_in_the_package() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    text = "".join((PROJECT / name).read_text("utf-8") for name in project["license-files"])
    assert project["license"] == "Apache-2.0" and "Apache License" in text and "Stillroom contributors" in text
