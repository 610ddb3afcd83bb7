"""Forest plot of differences from the baseline, with the margin."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from tasks.report.content.report import ComparisonRow
from tasks.report.figures.drawing import WIDTH, Figure, drawing, x_axis
from tasks.report.figures.svg import Scale, element, line, linear_ticks, marker, short, text
from tasks.shared.formats.verdict import Gate, MeasureComparison
from tasks.shared.text.numbers import MINUS, gap, gap_unit, interval

ANSWER_SHAPES = {"yes": "disc", "unknown": "ring", "no": "cross"}


def forest_figures(comparisons: Sequence[ComparisonRow], gates: Mapping[str, Gate]) -> list[Figure]:
    """Draw a figure per candidate: difference and interval on every measure that decides.

    Differences are in margins, so measures of any unit share the axis, and the limit is the same vertical line for all.
    """
    deciding = [(row, margin) for row in comparisons if (margin := row.result.margin)]
    if not deciding:
        return []
    x = forest_scale([(row.result, margin) for row, margin in deciding])
    names = dict.fromkeys(row.candidate for row, _ in deciding)
    return [
        forest_figure(name, i, [pair for pair in deciding if pair[0].candidate == name], gates, x)
        for i, name in enumerate(names)
    ]


def forest_figure(
    name: str, index: int, rows: Sequence[tuple[ComparisonRow, float]], gates: Mapping[str, Gate], x: Scale
) -> Figure:
    """Draw the figure of one candidate."""
    y, parts, described = 12.0, [text(6, 12, short(name, 40), class_="group")], []
    for row, margin in rows:
        y += 24
        unit, title, result = gates[row.measure].measure.unit, gates[row.measure].measure.title, row.result
        parts += forest_row(row, margin, unit, x, y)
        bounds = interval(result.low, result.high, unit)
        described.append(
            f"{title} {gap(result.difference, unit)} {gap_unit(unit)} {bounds}: non-inferior {result.answer}"
        )
    bottom = y + 16
    ticks = [(v, f"{v:+.4g}".replace("-", MINUS) if v else "0") for v in linear_ticks(x.low, x.high)]
    limits = [line(x(0), 20, x(0), bottom, "zero"), line(x(-1), 20, x(-1), bottom, "margin")]
    axis = x_axis(x, bottom, ticks, "difference from the baseline, in margins")
    title = f"{name} against the margins"
    return Figure(
        title, drawing(f"forest-{index}", title, "; ".join(described) + ".", bottom + 42, *limits, *parts, *axis), ""
    )


def forest_scale(results: Sequence[tuple[MeasureComparison, float]]) -> Scale:
    """Axis over all intervals, limited to six margins on either side.

    The limit keeps one failed model from flattening the others.
    """
    low = max(-6.0, min(-1.4, *(result.low / margin for result, margin in results)))
    high = min(6.0, max(1.0, *(result.high / margin for result, margin in results)))
    room = 0.04 * (high - low)
    return Scale(low - room, high + room, 118, WIDTH - 58)


def forest_row(row: ComparisonRow, margin: float, unit: str, x: Scale, y: float) -> list[Markup]:
    """Draw one interval with its mark, and its difference as a number."""
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
