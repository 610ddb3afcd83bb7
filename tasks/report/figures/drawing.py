"""Parts shared by all figures: the drawing with its title and description, and the axes.

Colors and fonts are in the style sheet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tasks.report.figures.svg import Scale, element, line, text

WIDTH = 440
"""Width of every drawing in figure units; the page shows it at 0.8 (phone) to 1.25 times this width."""
SHAPES = {"baseline": "square", "candidate": "disc", "parent": "disc", "repeat": "ring", "reference": "diamond"}


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption; the alternative text is inside the drawing."""

    title: str
    svg: Markup
    caption: str


def drawing(key: str, title: str, alt: str, height: float, *parts: Markup) -> Markup:
    """Build the svg element, with a title and a description for screen readers."""
    names = {"role": "img", "aria-labelledby": f"{key}-title {key}-alt", "viewBox": f"0 0 {WIDTH} {height:g}"}
    inside = [element("title", title, id=f"{key}-title"), element("desc", alt, id=f"{key}-alt"), *parts]
    return element("svg", *inside, **names)


def x_axis(scale: Scale, y: float, labels: Sequence[tuple[float, str]], title: str) -> list[Markup]:
    """Draw a horizontal axis: line, ticks with labels, and title."""
    parts = [line(scale.start, y, scale.end, y, "axis")]
    for value, label in labels:
        parts += [
            line(scale(value), y, scale(value), y + 4, "axis"),
            text(scale(value), y + 17, label, "middle", "tick"),
        ]
    parts.append(text((scale.start + scale.end) / 2, y + 35, title, "middle", "axis-title"))
    return parts


def y_axis(scale: Scale, left: float, right: float, labels: Sequence[tuple[float, str]]) -> list[Markup]:
    """Draw horizontal grid lines with labels."""
    parts = []
    for value, label in labels:
        parts += [
            line(left, scale(value), right, scale(value), "grid"),
            text(left - 7, scale(value) + 4, label, "end", "tick"),
        ]
    return parts
