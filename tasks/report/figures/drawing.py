"""What all figures of a report share: the drawing with its words, and its axes.  Colors and type come from the style sheet."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tasks.report.figures.svg import Scale, element, line, text

WIDTH = 440
"""Width of every figure's drawing; it is shown at most 1.25 times as wide, and at 0.8 on a phone."""
SHAPES = {"baseline": "square", "candidate": "disc", "repeat": "ring", "reference": "diamond"}


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption; the alternative text is inside the drawing."""

    title: str
    svg: Markup
    caption: str


def drawing(key: str, title: str, alt: str, height: float, *parts: Markup) -> Markup:
    """The svg element: named by its title and described in words for those who cannot see it."""
    names = {"role": "img", "aria-labelledby": f"{key}-title {key}-alt", "viewBox": f"0 0 {WIDTH} {height:g}"}
    inside = [element("title", title, id=f"{key}-title"), element("desc", alt, id=f"{key}-alt"), *parts]
    return element("svg", *inside, **names)


def x_axis(scale: Scale, y: float, labels: Sequence[tuple[float, str]], title: str) -> list[Markup]:
    """Base line, ticks with labels, and the axis title."""
    parts = [line(scale.start, y, scale.end, y, "axis")]
    for value, label in labels:
        parts += [
            line(scale(value), y, scale(value), y + 4, "axis"),
            text(scale(value), y + 17, label, "middle", "tick"),
        ]
    parts.append(text((scale.start + scale.end) / 2, y + 35, title, "middle", "axis-title"))
    return parts


def y_axis(scale: Scale, left: float, right: float, labels: Sequence[tuple[float, str]]) -> list[Markup]:
    """Grid lines with labels."""
    parts = []
    for value, label in labels:
        parts += [
            line(left, scale(value), right, scale(value), "grid"),
            text(left - 7, scale(value) + 4, label, "end", "tick"),
        ]
    return parts
