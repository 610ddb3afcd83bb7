"""Figures as files of their own, for slides and other documents."""

import re
from pathlib import Path

from markupsafe import Markup

from tasks.report.figures.drawing import WIDTH, Figure

SCALE = 2
"""Pixels of a figure unit, where a viewer does not scale."""
STYLE = Path(__file__).parent.parent / "page" / "html.css"
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
    head = Markup('<svg xmlns="http://www.w3.org/2000/svg" data-theme="{}" width="{:g}" height="{:g}" ').format(
        theme, SCALE * WIDTH, SCALE * float(height[1])
    )
    opened, inside = figure.svg.removeprefix("<svg ").split(">", 1)
    return f"{head}{opened}>\n<style>\n{figure_style()}\n</style>\n{inside}\n"


def figure_style() -> str:
    """Return the page's themes and rules for figures."""
    sheet = STYLE.read_text("utf-8")
    themes = sheet.partition("\n\n")[0]
    rules = [line for line in sheet.splitlines() if line.startswith("svg ") and not line.startswith("svg {")]
    return "\n".join([themes, ROOT, *rules])
