"""Figures of size and quality by stage: each model against the one it was made from."""

from collections.abc import Sequence

from markupsafe import Markup

from tasks.report.content.report import ModelRow, Report
from tasks.report.figures.drawing import WIDTH, Figure, drawing, x_axis
from tasks.report.figures.svg import Scale, element, line, linear_ticks, marker, short, text
from tasks.report.figures.tradeoff import tick
from tasks.shared.formats.scores import Measure
from tasks.shared.text.numbers import SHARE, amount, byte_size, gap, gap_unit, score_interval, smaller

LEFT, RIGHT = 118, WIDTH - 92
ROW, HEAD = 40, 6


def stage_rows(report: Report) -> list[tuple[ModelRow, ModelRow | None]]:
    """Baseline and candidates in the recipe's order, each with the model to compare it with."""
    by_name = {row.name: row for row in report.models}
    rows = [row for row in report.models if row.role in ("baseline", "candidate", "parent")]
    baseline = by_name.get(report.baseline)
    return [(row, None if row.role == "baseline" else by_name.get(row.parent, baseline)) for row in rows]


def row_label(row: ModelRow, y: float) -> list[Markup]:
    """Draw a model's name, and below it the technique that made it."""
    made = short(row.technique or row.role, 17)
    return [text(LEFT - 10, y, short(row.name, 15), "end"), text(LEFT - 10, y + 14, made, "end", "tick")]


def size_waterfall(report: Report) -> Figure | None:
    """Draw sizes as bars, each stage's reduction as an outline; None without two models."""
    rows = [(row, parent) for row, parent in stage_rows(report) if row.measured.size_bytes > 0]
    if len(rows) < 2:
        return None
    x = Scale(0, max(row.measured.size_bytes for row, _ in rows), LEFT, RIGHT)
    parts, described, y = [], [], float(HEAD)
    for row, parent in rows:
        size, before = row.measured.size_bytes, parent.measured.size_bytes if parent else row.measured.size_bytes
        parts += row_label(row, y + 14)
        parts.append(element("rect", x=LEFT, y=y + 5, width=x(size) - LEFT, height=18, class_=f"bar {row.role}"))
        if before > size:
            parts.append(
                element("rect", x=x(size), y=y + 5, width=x(before) - x(size), height=18, class_="taken"),
            )
        parts.append(text(x(max(size, before)) + 8, y + 14, byte_size(size), class_="value"))
        if parent:
            parts.append(text(x(max(size, before)) + 8, y + 28, smaller(before / size), class_="tick"))
        comparison = f", {smaller(before / size, parent.name)}" if parent else ""
        described.append(f"{row.name} {byte_size(size)}{comparison}")
        y += ROW
    parts.append(line(LEFT, HEAD, LEFT, y, "axis"))
    caption = "Size on disk."
    title = "Size, stage by stage"
    return Figure(title, drawing("size-stages", title, "; ".join(described) + ".", y + 6, *parts), caption)


def quality_waterfall(report: Report, name: str, measure: Measure) -> Figure | None:
    """Draw each model's change from its parent's score, with its interval.

    None without two models that have the score.
    """
    rows = [(row, parent) for row, parent in stage_rows(report) if name in row.measured.scores]
    if len(rows) < 2:
        return None
    x = stage_scale([row for row, _ in rows], name, measure.unit)
    parts, described, y = [], [], float(HEAD)
    for row, parent in rows:
        score = row.measured.scores[name]
        before = parent.measured.scores.get(name) if parent else None
        parts += row_label(row, y + 14)
        if before is not None:
            parts.append(stage_step(x, before.value, score.value, y + 14, measure.better))
        parts.append(line(x(score.low), y + 14, x(score.high), y + 14, "whisker muted-line"))
        shape = "square" if row.role == "baseline" else "disc"
        parts.append(element("g", marker(x(score.value), y + 14, shape), class_=row.role))
        parts.append(text(RIGHT + 10, y + 14, amount(score.value, measure.unit), class_="value"))
        change = None if before is None else score.value - before.value
        if change is not None:
            parts.append(text(RIGHT + 10, y + 28, gap(change, measure.unit), class_="tick"))
        described.append(
            f"{row.name} {amount(score.value, measure.unit)} {score_interval(score, measure.unit)}"
            + change_words(change, parent, measure)
        )
        y += ROW
    ticks = [(v, tick(v, measure.unit)) for v in linear_ticks(x.low, x.high, 4)]
    grid = [line(x(v), HEAD, x(v), y, "grid") for v, _ in ticks]
    unit = "" if measure.unit == SHARE else measure.unit
    axis = x_axis(x, y, ticks, unit)
    label = f"{measure.title[:1].upper()}{measure.title[1:]}"
    better = "higher" if measure.better == "higher" else "lower"
    caption = f"{label}; {better} is better."
    title = f"{label}, stage by stage"
    return Figure(
        title,
        drawing(f"stages-{name}", title, "; ".join(described) + ".", y + (42 if unit else 26), *grid, *parts, *axis),
        caption,
    )


def change_words(change: float | None, parent: ModelRow | None, measure: Measure) -> str:
    """Words for a stage's change of score."""
    if change is None or parent is None:
        return ""
    return f", {gap(change, measure.unit)} {gap_unit(measure.unit)} against {parent.name}"


def stage_step(x: Scale, before: float, after: float, y: float, better: str) -> Markup:
    """Draw a thick line from the parent's score to this one, with a tick at the parent's."""
    gained = after >= before if better == "higher" else after <= before
    inside = [line(x(before), y, x(after), y, "step"), line(x(before), y - 7, x(before), y + 7, "from")]
    return element("g", *inside, class_="yes" if gained else "no")


def stage_scale(rows: Sequence[ModelRow], name: str, unit: str) -> Scale:
    """Axis over all intervals; a share stays within 0 and 1."""
    scores = [row.measured.scores[name] for row in rows]
    low, high = min(score.low for score in scores), max(score.high for score in scores)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - room, high + room
    if unit == SHARE:
        low, high = max(0.0, low), min(1.0, high)
    return Scale(low, high, LEFT + 6, RIGHT - 4)
