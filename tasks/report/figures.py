"""The figures of a report as inline SVG.  Colours and type come from the page's style sheet, so they follow its theme."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tasks.report.content import ComparisonRow, ModelRow, Pruning, Report, Training
from tasks.report.numbers import (
    MINUS,
    SHARE,
    amount,
    byte_size,
    count,
    gap,
    gap_unit,
    interval,
    percent,
    quantity,
    round_size,
    score_interval,
    times,
)
from tasks.report.svg import Scale, element, line, linear_ticks, log_ticks, marker, place_labels, polyline, short, text
from tasks.shared.verdict import Gate, MeasureComparison

WIDTH = 440
"""Width of every figure's drawing; it is shown at most 1.25 times as wide, and at 0.8 on a phone."""
SHAPES = {"baseline": "square", "candidate": "disc", "repeat": "ring", "reference": "diamond"}
ANSWER_SHAPES = {"yes": "disc", "unknown": "ring", "no": "cross"}


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


def size_scale(rows: Sequence[ModelRow]) -> Scale:
    """A logarithmic axis over all sizes with room at both ends."""
    sizes = [row.measured.size_bytes for row in rows]
    return Scale(min(sizes) / 1.35, max(sizes) * 1.35, 48, WIDTH - 12, log=True)


def spread_apart(places: list[float], gap: float = 9) -> list[float]:
    """Pixels with points of (nearly) equal size set side by side, so that no interval hides another."""
    result = list(places)
    order = sorted(range(len(places)), key=lambda i: places[i])
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and places[order[end]] - places[order[end - 1]] < gap:
            end += 1
        middle = sum(places[i] for i in order[start:end]) / (end - start)
        for rank, i in enumerate(order[start:end]):
            result[i] = middle + (rank - (end - start - 1) / 2) * gap if end - start > 1 else places[i]
        start = end
    return result


def quality_figure(rows: Sequence[ModelRow], measure: str, gate: Gate) -> Figure | None:
    """Score with its interval against size (logarithmic); None when no model has a size and this score."""
    known = [row for row in rows if measure in row.measured.scores and row.measured.size_bytes > 0]
    if not known:
        return None
    unit = gate.measure.unit
    x, y, bottom = size_scale(known), value_scale(known, measure, unit), 232
    parts = y_axis(y, x.start, x.end, [(v, tick(v, unit)) for v in linear_ticks(y.low, y.high, 4)])
    parts += x_axis(x, bottom, [(v, round_size(v)) for v in log_ticks(x.low, x.high)], "size on disk (log scale)")
    places = spread_apart([x(row.measured.size_bytes) for row in known])
    dots, boxes, told = [], [], []
    for row, place in zip(known, places, strict=True):
        score = row.measured.scores[measure]
        parts.append(line(place, y(score.low), place, y(score.high), f"interval {row.role}"))
        boxes.append((place - 2, y(score.high), place + 2, y(score.low)))
        dots.append((place, y(score.value), short(row.name)))
        told.append(
            f"{row.name}, {byte_size(row.measured.size_bytes)}: {amount(score.value, unit)} {score_interval(score, unit)}"
        )
    parts += [
        element("g", marker(px, py, SHAPES[row.role]), class_=row.role)
        for row, (px, py, _) in zip(known, dots, strict=True)
    ]
    spots = place_labels(dots, (x.start, 8, WIDTH, bottom), boxes)
    parts += [text(left, base, dot[2]) for (left, base), dot in zip(spots, dots, strict=True)]
    title = f"{gate.measure.title[:1].upper()}{gate.measure.title[1:]} against size"
    caption = f"{title}. Bars: 95 % intervals. Square: baseline; discs: candidates; diamond: reference. Equal sizes stand side by side."
    return Figure(title, drawing(f"quality-{measure}", title, "; ".join(told) + ".", 272, *parts), caption)


def value_scale(rows: Sequence[ModelRow], measure: str, unit: str) -> Scale:
    """An axis for a measure's values: shares from 0 to 1, anything else over its intervals with room at both ends."""
    if unit == SHARE:
        return Scale(0, 1, 232, 16)
    scores = [row.measured.scores[measure] for row in rows]
    low, high = min(score.low for score in scores), max(score.high for score in scores)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(low - room, high + room, 232, 16)


def tick(value: float, unit: str) -> str:
    """A value at a tick of an axis."""
    return f"{100 * value:g} %" if unit == SHARE else f"{value:g}".replace("-", MINUS)


def speed_figure(rows: Sequence[ModelRow]) -> Figure | None:
    """Tokens per second of every measured model as bars with the range over repeats."""
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
    told = []
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
        told.append(
            f"{row.name} {quantity(spread.median)} tokens per second{ratio}, range {quantity(spread.low)} to {quantity(spread.high)}"
        )
    caption = "Decode speed: median, with the range over repeats as a line; in brackets, against the baseline."
    return Figure("Speed", drawing("speed", "Decode speed", "; ".join(told) + ".", bottom + 42, *parts), caption)


def forest_figure(comparisons: Sequence[ComparisonRow], gates: Mapping[str, Gate], confidence: float) -> Figure | None:
    """Difference with interval of every candidate and measure that decides, in margins; None when nothing was compared.

    Counted in margins, measures of any unit share one axis, and the limit is the same upright line for all.
    """
    deciding = [(row, margin) for row in comparisons if (margin := row.result.margin)]
    if not deciding:
        return None
    x = forest_scale([(row.result, margin) for row, margin in deciding])
    y, parts, told, previous = 6.0, [], [], None
    for row, margin in deciding:
        if row.candidate != previous:
            y, previous = y + (28 if previous else 12), row.candidate
            parts.append(text(6, y, short(row.candidate, 40), class_="group"))
        y += 22
        unit = gates[row.measure].measure.unit
        parts += forest_row(row, margin, unit, x, y)
        told.append(
            f"{row.candidate} {gates[row.measure].measure.title} {gap(row.result.difference, unit)} {gap_unit(unit)} "
            f"{interval(row.result.low, row.result.high, unit)}: non-inferior {row.result.answer}"
        )
    bottom = y + 16
    ticks = [(v, f"{v:+.4g}".replace("-", MINUS) if v else "0") for v in linear_ticks(x.low, x.high)]
    limits = [line(x(0), 6, x(0), bottom, "zero"), line(x(-1), 6, x(-1), bottom, "margin")]
    axis = x_axis(x, bottom, ticks, "difference from the baseline, in margins")
    caption = (
        f"Difference from the baseline on the same items with {percent(confidence, 0)} intervals, counted in margins: "
        f"the coloured line at {MINUS}1 is the limit. "
        "Disc: the whole interval is right of it (non-inferior); ring: it crosses it (unknown); cross: it lies left of it (worse); "
        "an arrow points to an interval beyond the axis. At the right, the difference in points or in the measure's unit."
    )
    return Figure(
        "Differences against the margin",
        drawing("forest", "Differences against the margin", "; ".join(told) + ".", bottom + 42, *limits, *parts, *axis),
        caption,
    )


def forest_scale(results: Sequence[tuple[MeasureComparison, float]]) -> Scale:
    """An axis over all intervals, but at most six margins to either side, so that one ruined model does not flatten the rest."""
    low = max(-6.0, min(-1.4, *(result.low / margin for result, margin in results)))
    high = min(6.0, max(1.0, *(result.high / margin for result, margin in results)))
    room = 0.04 * (high - low)
    return Scale(low - room, high + room, 118, WIDTH - 58)


def forest_row(row: ComparisonRow, margin: float, unit: str, x: Scale, y: float) -> list[Markup]:
    """One interval with its mark, and its difference as a number."""
    result = row.result
    place = result.difference / margin
    if place < x.low or place > x.high:
        tip, back = (x.start, 9) if place < x.low else (x.end, -9)
        path = f"M{tip + back:g} {y - 5:g}L{tip:g} {y:g}l{back:g} 5M{tip:g} {y:g}h{3 * back}"
        inside = [element("path", d=path, class_="arrow")]
    else:
        inside = [
            line(x(result.low / margin), y, x(result.high / margin), y, "whisker"),
            marker(x(place), y, ANSWER_SHAPES[result.answer]),
        ]
    return [
        text(x.start - 8, y + 4, short(row.measure.replace("_", " "), 15), "end"),
        element("g", *inside, class_=result.answer),
        text(WIDTH - 2, y + 4, gap(result.difference, unit), "end", "value"),
    ]


def loss_figure(training: Training, index: int) -> Figure | None:
    """Train and validation loss over steps; None when no loss was logged."""
    train = [(p.step, p.train_loss) for p in training.points if p.train_loss is not None]
    held = [(p.step, p.validation_loss) for p in training.points if p.validation_loss is not None]
    if not train and not held:
        return None
    steps, losses = zip(*train, *held, strict=True)
    room = 0.06 * (max(losses) - min(losses)) or 0.1
    x = Scale(min(steps), max(max(steps), min(steps) + 1), 48, WIDTH - 14)
    y = Scale(max(0.0, min(losses) - room), max(losses) + room, 212, 14)
    parts = y_axis(y, x.start, x.end, [(v, f"{v:g}") for v in linear_ticks(y.low, y.high)])
    parts += x_axis(x, 212, [(v, count(v)) for v in linear_ticks(x.low, x.high) if v == int(v)], "step")
    parts.append(polyline([(x(s), y(v)) for s, v in train], "curve train") if train else Markup(""))
    told = [f"train loss from {quantity(train[0][1])} to {quantity(train[-1][1])}"] if train else []
    if held:
        best = min(held, key=lambda pair: pair[1])
        parts.append(polyline([(x(s), y(v)) for s, v in held], "curve held"))
        parts += [element("g", marker(x(s), y(v), "disc"), class_="held") for s, v in held]
        told.append(
            f"validation loss from {quantity(held[0][1])} to {quantity(held[-1][1])}, lowest {quantity(best[1])} at step {best[0]}"
        )
    title = f"Loss of {training.model}"
    caption = (
        f"{title}: train (thin line)"
        + (" and validation (dots)" if held else "; no validation loss was logged")
        + f". {'; '.join(told).capitalize()}."
    )
    return Figure(title, drawing(f"loss-{index}", title, "; ".join(told) + ".", 254, *parts), caption)


def influence_figure(pruning: Pruning, index: int) -> Figure | None:
    """Influence of every block as bars, the dropped ones hatched; None when nothing was measured."""
    known = [(layer, layer.influence) for layer in pruning.layers if layer.influence is not None]
    if not known:
        return None
    first, last = known[0][0].layer, known[-1][0].layer
    x = Scale(first - 0.5, last + 0.5, 48, WIDTH - 14)
    y = Scale(min(0.0, *(v for _, v in known)), (max(0.0, *(v for _, v in known)) or 1) * 1.05, 212, 14)
    thick = max(1.0, 0.72 * (x.end - x.start) / (last - first + 1))
    parts = y_axis(y, x.start, x.end, [(v, f"{v:g}") for v in linear_ticks(y.low, y.high, 4)])
    for layer, value in known:
        top, foot = min(y(value), y(0)), max(y(value), y(0))
        kind = "dropped" if layer.dropped else "kept"
        parts.append(
            element(
                "rect",
                x=x(layer.layer) - thick / 2,
                y=top,
                width=thick,
                height=max(1.0, foot - top),
                class_=f"layer {kind}",
            )
        )
    parts += x_axis(x, 212, [(v, f"{v:g}") for v in linear_ticks(first, last, 8) if v == int(v)], "layer")
    gone = [str(layer.layer) for layer, _ in known if layer.dropped]
    title = f"Block influence, {pruning.model}"
    caption = f"{title}: {len(gone)} of {len(pruning.layers)} blocks dropped (outlined): {', '.join(gone) or 'none'}."
    alt = "; ".join(
        f"layer {layer.layer} {quantity(value)}{' dropped' if layer.dropped else ''}" for layer, value in known
    )
    return Figure(title, drawing(f"influence-{index}", title, alt + ".", 254, *parts), caption)


def all_figures(report: Report) -> dict[str, list[Figure]]:
    """Figures by section of the page; a section without data has none."""
    found: dict[str, list[Figure | None]] = {
        "quality": [
            quality_figure(report.models, name, gate) for name, gate in report.gates.items() if gate.margin is not None
        ],
        "speed": [speed_figure(report.models)],
        "forest": [forest_figure(report.comparisons, report.gates, 1 - 2 * report.alpha)],
        "training": [loss_figure(training, i) for i, training in enumerate(report.training)],
        "pruning": [influence_figure(pruning, i) for i, pruning in enumerate(report.pruning)],
    }
    return {section: [figure for figure in figures if figure is not None] for section, figures in found.items()}
