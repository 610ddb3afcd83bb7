"""The figures of a report as inline SVG.  Colours and type come from the page's style sheet, so they follow its theme."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tasks.report.content import ComparisonRow, ModelRow, Pruning, Report, Training
from tasks.report.numbers import (
    MINUS,
    byte_size,
    count,
    interval,
    percent,
    points,
    quantity,
    round_size,
    score_interval,
    times,
)
from tasks.report.svg import Scale, element, line, linear_ticks, log_ticks, marker, place_labels, polyline, short, text
from tasks.report.wording import measure_name
from tasks.shared.verdict import MEASURES, MeasureComparison

WIDTH = 440
"""Width of every figure's drawing; it is shown at most 1.25 times as wide, and at 0.8 on a phone."""
SHAPES = {"baseline": "square", "candidate": "disc", "reference": "diamond"}
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


def quality_figure(rows: Sequence[ModelRow], measure: str) -> Figure | None:
    """Score with its interval against size (logarithmic); None when no model has a size and this score."""
    known = [row for row in rows if measure in row.measured.scores and row.measured.size_bytes > 0]
    if not known:
        return None
    x, y, bottom = size_scale(known), Scale(0, 1, 232, 16), 232
    parts = y_axis(y, x.start, x.end, [(v / 4, f"{25 * v} %") for v in range(5)])
    parts += x_axis(x, bottom, [(v, round_size(v)) for v in log_ticks(x.low, x.high)], "size on disk (log scale)")
    places = spread_apart([x(row.measured.size_bytes) for row in known])
    dots, boxes, told = [], [], []
    for row, place in zip(known, places, strict=True):
        score = row.measured.scores[measure]
        parts.append(line(place, y(score.low), place, y(score.high), f"interval {row.role}"))
        boxes.append((place - 2, y(score.high), place + 2, y(score.low)))
        dots.append((place, y(score.value), short(row.name)))
        told.append(f"{row.name}, {byte_size(row.measured.size_bytes)}: {percent(score.value)} {score_interval(score)}")
    parts += [
        element("g", marker(px, py, SHAPES[row.role]), class_=row.role)
        for row, (px, py, _) in zip(known, dots, strict=True)
    ]
    spots = place_labels(dots, (x.start, 8, WIDTH, bottom), boxes)
    parts += [text(left, base, dot[2]) for (left, base), dot in zip(spots, dots, strict=True)]
    title = f"{measure_name(measure).capitalize()} against size"
    caption = f"{title}. Bars: 95 % intervals. Square: baseline; discs: candidates; diamond: reference. Equal sizes stand side by side."
    return Figure(title, drawing(f"quality-{measure}", title, "; ".join(told) + ".", 272, *parts), caption)


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
    engines = sorted({row.measured.speed_engine for row, _ in known})
    caption = f"Decode speed: median, with the range over repeats as a line; in brackets, against the baseline. Measured in {', '.join(engines)}."
    return Figure("Speed", drawing("speed", "Decode speed", "; ".join(told) + ".", bottom + 42, *parts), caption)


def forest_figure(comparisons: Sequence[ComparisonRow], confidence: float) -> Figure | None:
    """Difference with interval of every candidate and measure against the margin; None when nothing was compared."""
    if not comparisons:
        return None
    x = forest_scale([row.result for row in comparisons])
    y, parts, told, previous = 6.0, [], [], None
    for row in comparisons:
        if row.candidate != previous:
            y, previous = y + (28 if previous else 12), row.candidate
            parts.append(text(6, y, short(row.candidate, 40), class_="group"))
        y += 22
        parts += forest_row(row, x, y)
        bounds = interval(row.result.low, row.result.high)
        told.append(
            f"{row.candidate} {measure_name(row.measure)} {points(row.result.difference)} points {bounds}: non-inferior {row.answer}"
        )
    bottom = y + 16
    ticks = [(v, f"{100 * v:+.4g}".replace("-", MINUS) if v else "0") for v in linear_ticks(x.low, x.high)]
    parts = [line(x(0), 6, x(0), bottom, "zero"), *parts, *x_axis(x, bottom, ticks, "points, candidate minus baseline")]
    caption = (
        f"Difference from the baseline on the same items, with {percent(confidence, 0)} intervals. The upright tick on each row is its margin: "
        "disc, the whole interval is right of it (non-inferior); ring, it crosses it (unknown); cross, it lies left of it (worse); "
        "an arrow points to an interval beyond the axis."
    )
    return Figure(
        "Differences against the margin",
        drawing("forest", "Differences against the margin", "; ".join(told) + ".", bottom + 42, *parts),
        caption,
    )


def forest_scale(results: Sequence[MeasureComparison]) -> Scale:
    """An axis over all intervals, but at most six margins to either side, so that one ruined model does not flatten the rest."""
    margin = max(max(r.margin for r in results), 0.01)
    low = max(-6 * margin, min(-1.4 * margin, *(r.low for r in results)))
    high = min(6 * margin, max(margin, *(r.high for r in results)))
    room = 0.04 * (high - low)
    return Scale(low - room, high + room, 118, WIDTH - 14)


def forest_row(row: ComparisonRow, x: Scale, y: float) -> list[Markup]:
    """One interval with its mark and its margin."""
    result = row.result
    if result.difference < x.low or result.difference > x.high:
        left = result.difference < x.low
        tip, back = (x.start, 9) if left else (x.end, -9)
        arrow = element(
            "path", d=f"M{tip + back:g} {y - 5:g}L{tip:g} {y:g}l{back:g} 5M{tip:g} {y:g}h{3 * back}", class_="arrow"
        )
        inside = [arrow, text(tip + 3.6 * back, y + 4, points(result.difference), "start" if left else "end", "value")]
    else:
        whisker = line(x(result.low), y, x(result.high), y, "whisker")
        inside = [whisker, marker(x(result.difference), y, ANSWER_SHAPES[row.answer])]
    return [
        text(x.start - 8, y + 4, row.measure.replace("_", " "), "end"),
        line(x(-result.margin), y - 11, x(-result.margin), y + 11, "margin"),
        element("g", *inside, class_=row.answer),
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
        "quality": [quality_figure(report.models, measure) for measure in MEASURES],
        "speed": [speed_figure(report.models)],
        "forest": [forest_figure(report.comparisons, 1 - 2 * report.alpha)],
        "training": [loss_figure(training, i) for i, training in enumerate(report.training)],
        "pruning": [influence_figure(pruning, i) for i, pruning in enumerate(report.pruning)],
    }
    return {section: [figure for figure in figures if figure is not None] for section, figures in found.items()}
