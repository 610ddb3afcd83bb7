"""Figures as files of their own, for slides and other documents."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from markupsafe import Markup

from tasks.report.figures.drawing import WIDTH, Figure

SCALE = 2
"""Pixels of a figure unit, where a viewer does not scale."""
STYLE = Path(__file__).parent.parent / "page" / "html.css"
VARIABLE = re.compile(r"(--[\w-]+): ([^;]+);")
THEMES = (":root {", '[data-theme="dark"] {')
"""Beginnings of the style sheet's blocks that set the variables of a theme."""
ROOT = "svg { font-family: var(--sans); font-variant-numeric: tabular-nums; background: var(--paper); }"
"""In place of the page's rule for figures, which fit its columns."""


def file_name(figure: Figure) -> str:
    """Return a name for the figure's file, by its key in the page."""
    found = re.search(r'id="([^"]+)-title"', figure.svg)
    assert found is not None  # by `drawing`
    return re.sub(r"[^\w.-]+", "-", found[1]).strip(".-") + ".svg"


def svg_file(figure: Figure, theme: str = "auto") -> str:
    """Return the figure as an SVG file with the page's colors; it needs no other file.

    theme: "auto" (the viewer's setting), "light" or "dark".
    """
    height = re.search(r'viewBox="0 0 \S+ ([\d.]+)"', figure.svg)
    assert height is not None  # by `drawing`
    head = Markup('<svg xmlns="http://www.w3.org/2000/svg" width="{:g}" height="{:g}" ').format(
        SCALE * WIDTH, SCALE * float(height[1])
    )
    opened, inside = figure.svg.removeprefix("<svg ").split(">", 1)
    return f"{head}{opened}>\n<style>\n{figure_style(theme)}\n</style>\n{inside}\n"


def figure_style(theme: str = "auto") -> str:
    """Return the page's rules for figures, with values in place of variables.

    Office programs and converters know no variables.
    theme: as for `svg_file`; "auto" has the light rules, and the dark ones for viewers that ask for them.
    """
    sheet = STYLE.read_text("utf-8")
    light, dark = (dict(VARIABLE.findall(sheet[sheet.index(start) :].partition("}")[0])) for start in THEMES)
    rules = [ROOT, *(line for line in sheet.splitlines() if line.startswith("svg ") and not line.startswith("svg {"))]
    if theme != "auto":
        return "\n".join(_resolved(rules, light | (dark if theme == "dark" else {})))
    darker = [rule for rule in _resolved(rules, light | dark) if rule not in _resolved(rules, light)]
    return "\n".join([*_resolved(rules, light), "@media (prefers-color-scheme: dark) {", *darker, "}"])


def _resolved(rules: Iterable[str], values: Mapping[str, str]) -> list[str]:
    """Replace each variable by its value."""
    return [re.sub(r"var\((--[\w-]+)\)", lambda found: values[found[1]], rule) for rule in rules]
