"""Scales, ticks, labels and elements of inline SVG figures; equal numbers yield equal bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, hypot, inf, log10

from markupsafe import Markup, escape

TEXT_WIDTH = 7.3
"""Mean width of a character of figure text, in figure units (font size 12.5)."""
LEADER_FROM = 12
"""Distance of a label from its point above which a line joins them."""


def number(value: float) -> str:
    """Format a coordinate with at most two decimals and no trailing zeros."""
    shown = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if shown in ("-0", "") else shown


def element(tag: str, *children: str | Markup, **attributes: str | float | None) -> Markup:
    """Build one SVG element; children and attributes are escaped unless Markup.

    attributes: `class_` becomes "class", `stroke_width` becomes "stroke-width"; None leaves the attribute out.
    """
    parts = []
    for key, value in attributes.items():
        if value is None:
            continue
        shown = value if isinstance(value, str) else number(value)
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    inner = Markup("").join(children)
    return Markup(f"<{tag}{''.join(parts)}>{inner}</{tag}>")  # noqa: S704  (every part is escaped above)


def text(x: float, y: float, content: str, anchor: str = "start", class_: str = "label") -> Markup:
    """Draw a line of text with its baseline at y."""
    return element("text", content, x=x, y=y, text_anchor=anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Draw a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def polyline(places: Sequence[tuple[float, float]], class_: str) -> Markup:
    """Draw a line through points (x, y)."""
    return element("polyline", points=" ".join(f"{number(x)},{number(y)}" for x, y in places), class_=class_)


def marker(x: float, y: float, shape: str, radius: float = 5.0) -> Markup:
    """Draw a mark: square, disc, ring, diamond or cross.

    The shape alone identifies the kind; marks with the same radius have about the same area.
    """
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
    """Map of values low..high to pixels start..end, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of a value; values outside the range are clamped."""
        low, high, value = (
            (log10(v) for v in (self.low, self.high, max(value, 1e-300))) if self.log else (self.low, self.high, value)
        )
        share = 0.5 if high == low else (value - low) / (high - low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)


def linear_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """About `wanted` values in low..high, at a step of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        return [low]
    base = 10.0 ** floor(log10((high - low) / wanted))
    step = next(s * base for s in (1, 2, 2.5, 5, 10) if (high - low) / (s * base) <= wanted)
    first = -floor(-low / step + 1e-9)
    return [round(i * step, 12) for i in range(first, floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values in low..high for a logarithmic axis, three to seven if possible."""
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
    """Area of the intersection of two boxes (left, top, right, bottom)."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def place_labels(
    points: Sequence[tuple[float, float, str]], frame: Box, taken: Sequence[Box] = ()
) -> list[tuple[float, float]]:
    """Place a label next to, above or below each point, where it covers least of the others.

    points: (x, y, label).  frame: box that the labels should stay in.  taken: boxes to avoid.
    Returns the left end of each label's baseline.  Placement is greedy in the order given, hence deterministic.
    """
    used = [*taken, *((x - 9, y - 8, x + 9, y + 8) for x, y, _ in points)]
    result: list[tuple[float, float]] = []
    for x, y, label in points:
        width = TEXT_WIDTH * len(label)
        spots = [
            (x + dx, y + dy)
            for dy in (-5, 15, -18, 28, -31, 41, -44, 54, -57, 67)
            for dx in (9, -9 - width, -width / 2)
        ]
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


def leader(dot: tuple[float, float], label: tuple[float, float, str]) -> Markup | None:
    """Draw a thin line from a point to its label; None if they are side by side.

    dot: x, y.  label: left end of its baseline, and its text.
    """
    left, base, words = label
    x = min(max(dot[0], left), left + TEXT_WIDTH * len(words))
    y = min(max(dot[1], base - 11), base + 3)
    return line(*dot, x, y, "leader") if hypot(x - dot[0], y - dot[1]) > LEADER_FROM else None


def short(name: str, length: int = 16) -> str:
    """Shorten a name to fit a figure; the tables have the full name."""
    return name if len(name) <= length else name[: length - 1] + "…"
