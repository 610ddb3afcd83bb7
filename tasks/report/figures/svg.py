"""Scales, ticks, labels and elements for figures drawn as inline SVG: the same numbers give the same bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, inf, log10

from markupsafe import Markup, escape

TEXT_WIDTH = 7.3
"""Mean advance of a character of figure text, in figure units (12.5 high)."""


def number(value: float) -> str:
    """A coordinate with at most two decimals and no trailing zeros."""
    shown = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if shown in ("-0", "") else shown


def element(tag: str, *children: str | Markup, **attributes: str | float | None) -> Markup:
    """One SVG element.  Children and attributes are escaped unless Markup; `class_` and `stroke_width` lose or change `_`."""
    parts = []
    for key, value in attributes.items():
        if value is None:
            continue
        shown = value if isinstance(value, str) else number(value)
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    inner = Markup("").join(children)
    return Markup(f"<{tag}{''.join(parts)}>{inner}</{tag}>")  # noqa: S704  (every part is escaped above)


def text(x: float, y: float, content: str, anchor: str = "start", class_: str = "label") -> Markup:
    """A line of text with its baseline at y."""
    return element("text", content, x=x, y=y, text_anchor=anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def polyline(places: Sequence[tuple[float, float]], class_: str) -> Markup:
    """A line through places."""
    return element("polyline", points=" ".join(f"{number(x)},{number(y)}" for x, y in places), class_=class_)


def marker(x: float, y: float, shape: str, radius: float = 5.0) -> Markup:
    """A mark whose shape alone tells the kind: square, disc, ring, diamond or cross.  All of one radius cover about the same area."""
    if shape == "square":
        side = 1.8 * radius
        return element("rect", x=x - side / 2, y=y - side / 2, width=side, height=side, class_="mark square")
    if shape == "diamond":
        half = number(1.2 * radius)
        path = f"M{number(x)} {number(y - 1.2 * radius)}l{half} {half}l-{half} {half}l-{half} -{half}Z"
        return element("path", d=path, class_="mark diamond")
    if shape == "cross":
        full = number(2 * radius)
        path = f"M{number(x - radius)} {number(y - radius)}l{full} {full}m0 -{full}l-{full} {full}"
        return element("path", d=path, class_="mark cross")
    return element("circle", cx=x, cy=y, r=radius, class_=f"mark {shape}")


@dataclass(frozen=True)
class Scale:
    """Maps low..high to pixels start..end, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of a value; values outside are held at the edge."""
        low, high, value = (
            (log10(v) for v in (self.low, self.high, max(value, 1e-300))) if self.log else (self.low, self.high, value)
        )
        share = 0.5 if high == low else (value - low) / (high - low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)


def linear_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values inside low..high at a step of 1, 2, 2.5 or 5 times a power of ten, about `wanted` of them."""
    if not high > low:
        return [low]
    base = 10.0 ** floor(log10((high - low) / wanted))
    step = next(s * base for s in (1, 2, 2.5, 5, 10) if (high - low) / (s * base) <= wanted)
    first = -floor(-low / step + 1e-9)
    return [round(i * step, 12) for i in range(first, floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values inside low..high on a logarithmic axis, three to seven of them where possible."""
    sets: list[Sequence[float]] = [(1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), [1 + i / 10 for i in range(90)]]
    found: list[float] = []
    for mantissas in sets:
        decades = range(floor(log10(low)), floor(log10(high)) + 1)
        found = [m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high]
        if len(found) >= 3:
            break
    return found


Box = tuple[float, float, float, float]


def overlap(a: Box, b: Box) -> float:
    """Area that two boxes (left, top, right, bottom) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def place_labels(
    points: Sequence[tuple[float, float, str]], frame: Box, taken: Sequence[Box] = ()
) -> list[tuple[float, float]]:
    """Left end of the baseline of each point's label: beside it, above or below, where it covers least.

    points: (x, y, label).  Greedy in the order given, so the same points always get the same places.
    """
    used = [*taken, *((x - 9, y - 8, x + 9, y + 8) for x, y, _ in points)]
    result: list[tuple[float, float]] = []
    for x, y, label in points:
        width = TEXT_WIDTH * len(label)
        spots = [(x + dx, y + dy) for dy in (-5, 15, -18, 28, -31, 41) for dx in (9, -9 - width, -width / 2)]
        best, cost = spots[0], inf
        for rank, (left, base) in enumerate(spots):
            box = (left, base - 11, left + width, base + 3)
            outside = (
                max(0, frame[0] - box[0])
                + max(0, box[2] - frame[2])
                + max(0, frame[1] - box[1])
                + max(0, box[3] - frame[3])
            )
            covered = sum(overlap(box, other) for other in used) + 1000 * outside + rank
            if covered < cost:
                best, cost = (left, base), covered
        result.append(best)
        used.append((best[0] - 10, best[1] - 11, best[0] + width + 10, best[1] + 3))
    return result


def short(name: str, length: int = 16) -> str:
    """A name that fits a figure; the full one is in the tables."""
    return name if len(name) <= length else name[: length - 1] + "…"
