"""Figures of quality against size and speed, and of decode speed."""

from collections.abc import Sequence
from math import sqrt

from markupsafe import Markup

from tasks.report.content.report import ModelRow
from tasks.report.figures.drawing import SHAPES, WIDTH, Figure, drawing, x_axis, y_axis
from tasks.report.figures.svg import (
    Scale,
    element,
    leader,
    line,
    linear_ticks,
    log_ticks,
    marker,
    place_labels,
    short,
    text,
)
from tasks.shared.formats.scores import Measure
from tasks.shared.formats.verdict import Cliff
from tasks.shared.text.numbers import (
    MINUS,
    SHARE,
    amount,
    byte_size,
    gap,
    gap_unit,
    quantity,
    round_size,
    score_interval,
    times,
)

TOP, BOTTOM = 44, 252
NEAR, APART = 2.0, 7.0
"""Pixels up to which sizes count as equal, and between the marks of equal sizes."""
LARGEST, SMALLEST = 9.0, 3.5
"""Radius of the fastest model's mark, and the smallest radius of a mark."""


def dominated(rows: Sequence[ModelRow], measure: str, better: str) -> set[str]:
    """Names of the dominated models.

    Another model is at least as good in score, size and speed, and better in one of them.  Estimates are compared without
    their intervals; speed counts only if the two models were timed in the same engine, in the same rounds.
    """

    def beats(other: ModelRow, row: ModelRow) -> bool:
        sign = 1 if better == "higher" else -1
        pairs = [
            (sign * other.measured.scores[measure].value, sign * row.measured.scores[measure].value),
            (-other.measured.size_bytes, -row.measured.size_bytes),
        ]
        if other.times_faster is not None and row.times_faster is not None and timed_together(other, row):
            pairs.append((other.times_faster, row.times_faster))
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    known = [row for row in rows if measure in row.measured.scores]
    return {row.name for row in known if any(beats(other, row) for other in known if other is not row)}


def timed_together(one: ModelRow, other: ModelRow) -> bool:
    """Return True if two models' speed ratios to the baseline are from the same engine.

    The baseline was timed in the engine of every model with a ratio.
    """
    # "llama.cpp (f16 GGUF)" is the engine llama.cpp.
    engines = {row.measured.speed_engine.partition(" (")[0] for row in (one, other)}
    return len(engines) == 1 or "baseline" in (one.role, other.role)


def pareto_figure(rows: Sequence[ModelRow], name: str, measure: Measure, cliff: Cliff | None = None) -> Figure | None:
    """Draw score with interval against size (log scale), the mark's area by speed.

    None if no model has a size and this score.
    cliff: of this measure; a dashed line before its model.
    """
    known = [
        row for row in rows if row.role != "repeat" and name in row.measured.scores and row.measured.size_bytes > 0
    ]
    if not known:
        return None
    worse = dominated(known, name, measure.better)
    x, y = size_scale(known), value_scale(known, name, measure.unit)
    parts = y_axis(y, x.start, x.end, [(v, tick(v, measure.unit)) for v in linear_ticks(y.low, y.high, 4)])
    parts += x_axis(x, BOTTOM, [(v, round_size(v)) for v in log_ticks(x.low, x.high)], "size on disk (log scale)")
    places = spread_apart([x(row.measured.size_bytes) for row in known], NEAR, APART)
    fastest = max((row.times_faster for row in known if row.times_faster is not None), default=0.0)
    dots, boxes, described = [], [], []
    for row, place in zip(known, places, strict=True):
        score, kind = row.measured.scores[name], "dominated" if row.name in worse else row.role
        radius = mark_radius(row, fastest)
        parts.append(line(place, y(score.low), place, y(score.high), f"interval {kind}"))
        parts.append(element("g", marker(place, y(score.value), SHAPES[row.role], radius), class_=kind))
        boxes.append((place - 2, y(score.high), place + 2, y(score.low)))
        dots.append((place, y(score.value), short(row.name)))
        described.append(describe(row, name, measure.unit, row.name in worse))
    edge = cliff_edge(rows, cliff)
    if edge is not None:
        parts.append(line(x(edge), TOP, x(edge), BOTTOM, "cliff"))
        boxes.append((x(edge) - 2, TOP, x(edge) + 2, BOTTOM))
    spots = place_labels(dots, (x.start, TOP - 8, WIDTH, BOTTOM), boxes)
    parts += [
        joined
        for spot, dot in zip(spots, dots, strict=True)
        if (joined := leader(dot[:2], (*spot, dot[2]))) is not None
    ]
    parts += [
        text(left, base, dot[2], class_="label faint" if row.name in worse else "label")
        for (left, base), dot, row in zip(spots, dots, known, strict=True)
    ]
    parts += speed_legend(known, fastest)
    better = "higher is better" if measure.better == "higher" else "lower is better"
    unit = "" if measure.unit == SHARE else f" in {measure.unit}"
    title = f"{measure.title[:1].upper()}{measure.title[1:]}, size and speed"
    caption = f"{measure.title[:1].upper()}{measure.title[1:]}{unit} against size; {better}."
    if edge is not None and cliff is not None:
        told = (
            f"Dashed: {cliff.model} loses {gap(cliff.loss, measure.unit, signed=False)} {gap_unit(measure.unit)}, more than twice the "
            f"{gap(cliff.expected, measure.unit, signed=False)} of the larger models' trend."
        )
        caption, described = f"{caption} {told}", [*described, told.removesuffix(".")]
    return Figure(title, drawing(f"pareto-{name}", title, "; ".join(described) + ".", BOTTOM + 40, *parts), caption)


def cliff_edge(rows: Sequence[ModelRow], cliff: Cliff | None) -> float | None:
    """Return the size, in bytes, between a cliff's model and the one before it.

    None without a cliff, or their sizes.
    """
    sizes = {row.name: row.measured.size_bytes for row in rows}
    if cliff is None or not all(sizes.get(name) for name in (cliff.model, cliff.before)):
        return None
    return sqrt(sizes[cliff.model] * sizes[cliff.before])


def describe(row: ModelRow, name: str, unit: str, beaten: bool) -> str:
    """Description of one point."""
    score = row.measured.scores[name]
    parts = [
        f"{row.name}, {byte_size(row.measured.size_bytes)}",
        "speed not compared" if row.times_faster is None else f"{times(row.times_faster)} the speed of the baseline",
        f"{amount(score.value, unit)} {score_interval(score, unit)}",
    ]
    return ", ".join(parts) + (", dominated" if beaten else "")


def mark_radius(row: ModelRow, fastest: float) -> float:
    """Radius of a mark with an area proportional to speed; the smallest if not measured."""
    speed = row.times_faster
    return max(SMALLEST, LARGEST * sqrt(speed / fastest)) if speed and fastest > 0 else SMALLEST


def speed_legend(rows: Sequence[ModelRow], fastest: float) -> list[Markup]:
    """Draw the legend of the marks' areas: slowest and fastest model, and "not measured"."""
    speeds = sorted(row.times_faster for row in rows if row.times_faster is not None)
    if not speeds:
        return []
    parts, place = [text(48, 18, "x faster", class_="tick")], 122.0
    for speed in dict.fromkeys([speeds[0], speeds[-1]]):
        radius = max(SMALLEST, LARGEST * sqrt(speed / fastest)) if fastest > 0 else SMALLEST
        parts += [
            element("g", marker(place, 14, "ring", radius), class_="scale"),
            text(place + radius + 5, 18, times(speed), class_="tick"),
        ]
        place += 2 * radius + 14 + 8 * len(times(speed))
    if len(speeds) < len(rows):
        parts += [
            element("g", marker(place, 14, "ring", SMALLEST), class_="scale"),
            text(place + 9, 18, "or not measured", class_="tick"),
        ]
    return parts


def size_scale(rows: Sequence[ModelRow]) -> Scale:
    """Logarithmic axis over all sizes, with room at both ends."""
    sizes = [row.measured.size_bytes for row in rows]
    return Scale(min(sizes) / 1.35, max(sizes) * 1.35, 48, WIDTH - 12, log=True)


def value_scale(rows: Sequence[ModelRow], name: str, unit: str) -> Scale:
    """Axis over the intervals of a measure, with room at both ends.  A share stays in [0, 1]."""
    scores = [row.measured.scores[name] for row in rows]
    low, high = min(score.low for score in scores), max(score.high for score in scores)
    room = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - room, high + room
    return Scale(max(0.0, low), min(1.0, high), BOTTOM, TOP) if unit == SHARE else Scale(low, high, BOTTOM, TOP)


def tick(value: float, unit: str) -> str:
    """Format a value for an axis tick."""
    return f"{100 * value:.4g} %" if unit == SHARE else f"{value:.4g}".replace("-", MINUS)


def spread_apart(places: list[float], near: float, gap: float) -> list[float]:
    """Move points with (nearly) equal pixels side by side, so that no interval hides another.

    near: distance up to which neighbors are equal.  gap: distance that they get.
    """
    result = list(places)
    order = sorted(range(len(places)), key=lambda i: places[i])
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and places[order[end]] - places[order[end - 1]] <= near:
            end += 1
        middle = sum(places[i] for i in order[start:end]) / (end - start)
        for rank, i in enumerate(order[start:end]):
            result[i] = middle + (rank - (end - start - 1) / 2) * gap if end - start > 1 else places[i]
        start = end
    return result


def speed_figure(rows: Sequence[ModelRow]) -> Figure | None:
    """Draw tokens per second of each measured model as bars, with the range over repeats."""
    known = [(row, spread) for row in rows if (spread := row.measured.tokens_per_second) is not None]
    if not known:
        return None
    step, top = 34, 8
    bottom = top + step * len(known)
    x = Scale(0, 1.02 * (max(s.high for _, s in known) or 1), 118, WIDTH - 84)
    ticks = [(v, f"{v:g}") for v in linear_ticks(0, x.high, 4)]
    parts = [line(x(v), top, x(v), bottom, "grid") for v, _ in ticks] + x_axis(
        x, bottom, ticks, "tokens per second, one stream"
    )
    described = []
    for i, (row, spread) in enumerate(known):
        y = top + step * i + step / 2
        parts.append(text(x.start - 8, y + 4, short(row.name), "end"))
        parts.append(
            element(
                "rect",
                x=x.start,
                y=y - 9,
                width=max(0.0, x(spread.median) - x.start),
                height=18,
                class_=f"bar {row.role}",
            )
        )
        parts.append(line(x(spread.low), y, x(spread.high), y, "range"))
        ratio = f" ({times(row.times_faster)})" if row.times_faster is not None and row.role != "baseline" else ""
        parts.append(text(x(spread.high) + 7, y + 4, quantity(spread.median) + ratio, class_="value"))
        described.append(
            f"{row.name} {quantity(spread.median)} tokens per second{ratio}, range {quantity(spread.low)} to {quantity(spread.high)}"
        )
    caption = "Decode speed: median, with the range over repeats as a line; in brackets, relative to the baseline in the same engine."
    return Figure(
        "Speed",
        drawing("speed", "Decode speed", "; ".join(described) + ".", bottom + 42, *parts),
        caption + engine_words([row for row, _ in known]),
    )


def engine_words(rows: Sequence[ModelRow]) -> str:
    """Sentence that names the engines, if they differ; bars of different engines do not compare."""
    engines: dict[str, list[str]] = {}
    for row in rows:
        engines.setdefault(row.measured.speed_engine, []).append(row.name)
    if len(engines) < 2:
        return ""
    described = [f"{', '.join(names)} in {engine or 'an unknown engine'}" for engine, names in engines.items()]
    return f" Bars compare within one engine only: {'; '.join(described)}."
