"""Generated tables of techniques in README.md and docs/techniques.md."""

import ast
import importlib
import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from flows.planning.catalog import Entry, catalog
from flows.planning.steps import plain
from tasks.shared.errors import ConfigError
from tasks.shared.store.keys import PROJECT
from tasks.shared.technique import Port

README, PAGE = PROJECT / "README.md", PROJECT / "docs" / "techniques.md"
BEGIN, END = "<!-- techniques -->", "<!-- /techniques -->"
"""Lines that enclose generated text."""
LONGEST = 60
"""Largest number of characters of a default that the table shows."""


@dataclass(frozen=True)
class Setting:
    """A setting of a technique.

    name: dotted name.
    default: default as JSON.
    text: first paragraph of its documentation.
    """

    name: str
    default: str
    text: str


def stale_documents() -> dict[Path, str]:
    """Return the new text of each document whose generated part is out of date.

    Skips documents that do not exist, as in an installed package.  Raises ConfigError for missing markers.
    """
    entries = catalog()
    wanted = {README: table(entries), PAGE: reference(entries)}
    texts = {path: (path.read_text("utf-8"), part) for path, part in wanted.items() if path.is_file()}
    renewed = {path: (text, _between_markers(path, text, part)) for path, (text, part) in texts.items()}
    return {path: new for path, (old, new) in renewed.items() if new != old}


def write_documents() -> list[str]:
    """Update the generated parts; return the names of the files that changed.

    Raises ConfigError for missing markers.
    """
    stale = stale_documents()
    for path, text in stale.items():
        path.write_text(text, "utf-8")
    return [path.name for path in stale]


def _between_markers(path: Path, text: str, part: str) -> str:
    """Replace the part between the markers of a text."""
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ConfigError(
            path.name,
            "no markers for the table of techniques",
            f"{BEGIN} and {END}",
            "put both lines where the table belongs",
        )
    return f"{before}{begin}{part}\n{end}{after}"


def table(entries: Sequence[Entry]) -> str:
    """Table of the stages with their purpose and links to their techniques."""
    rows = [
        [stage, _purpose(stage), ", ".join(f"[`{entry.name}`](docs/{PAGE.name}#{_anchor(entry)})" for entry in group)]
        for stage, group in groupby(entries, lambda entry: entry.stage)
    ]
    return _markdown(["stage", "purpose", "techniques"], rows)


def _purpose(stage: str) -> str:
    """First line of a stage's package."""
    text = importlib.import_module(f"tasks.{stage}").__doc__ or ""
    return text.strip().split("\n")[0].rstrip(".")


def _anchor(entry: Entry) -> str:
    """Anchor that GitHub gives the heading of a technique."""
    return f"{entry.stage}{entry.name}"


def reference(entries: Sequence[Entry]) -> str:
    """Overview of all techniques, then the inputs and settings of each."""
    rows = [
        [
            f"[{entry.stage}/{entry.name}](#{_anchor(entry)})",
            entry.spec.summary,
            entry.spec.accepts if "model" in entry.spec.ports else "",
            entry.spec.gives or "",
            entry.spec.device,
            entry.spec.paper,
        ]
        for entry in entries
    ]
    overview = _markdown(["technique", "summary", "takes weights", "gives weights", "device", "paper"], rows)
    return "\n\n".join([overview, *map(_section, entries)])


def _section(entry: Entry) -> str:
    """Section of one technique: summary, inputs, output and settings."""
    inputs = ", ".join(f"`{name}` ({_port(port)})" for name, port in entry.spec.ports.items()) or "none"
    settings = [
        [f"`{item.name}`", _escape(f"`{item.default}`"), _escape(item.text)] for item in settings_of(entry.technique())
    ]
    return "\n\n".join(
        [
            f"### {entry.stage}/{entry.name}",
            f"{entry.spec.summary}.",
            f"Inputs: {inputs}. Output: {entry.spec.produces}.",
            _markdown(["setting", "default", "meaning"], settings),
        ]
    )


def _port(port: Port) -> str:
    """Kinds that a port accepts, and whether it takes several artifacts or none."""
    notes = [word for word, holds in (("several", port.many), ("optional", port.optional)) if holds]
    return ", ".join([" or ".join(port.kinds), *notes])


def settings_of(settings: Any, prefix: str = "") -> Iterator[Setting]:
    """Yield every setting of a technique, nested ones by their dotted names."""
    texts = {name: text for cls in reversed(type(settings).__mro__) for name, text in _field_texts(cls).items()}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from settings_of(value, f"{prefix}{field.name}.")
            continue
        default = json.dumps(plain(value), ensure_ascii=False)
        shown = default if len(default) <= LONGEST else f"{default[: LONGEST - 3]}..."
        yield Setting(prefix + field.name, shown, texts.get(field.name, ""))


@cache
def _field_texts(cls: type[Any]) -> dict[str, str]:
    """First paragraph of the docstring under each field of a class, by the field's name."""
    if not cls.__module__.startswith("tasks."):
        return {}
    tree = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
    body = next(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    return {
        node.target.id: " ".join(after.value.value.split("\n\n")[0].split())
        for node, after in zip(body, body[1:], strict=False)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
    }  # fmt: skip


def _escape(text: str) -> str:
    """Escape text for a cell of a Markdown table, except inside code spans."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if index % 2 else part.replace("<", "&lt;") for index, part in enumerate(parts))


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
