"""Plots of a sweep: differences from the baseline against the swept values.

One panel for each measure and candidate, with the bounds of every difference.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby

from markupsafe import Markup

from flows.sweeps.results import Axis, Entry, Sweep
from tasks.report.figures.drawing import WIDTH, Figure, drawing, x_axis, y_axis
from tasks.report.figures.forest import ANSWER_SHAPES
from tasks.report.figures.svg import (
    TEXT_WIDTH,
    Scale,
    element,
    line,
    linear_ticks,
    log_ticks,
    marker,
    polyline,
    short,
    text,
)
from tasks.shared.formats.verdict import Gate, MeasureComparison
from tasks.shared.text.numbers import MINUS, SHARE, gap, gap_unit, interval

TOP, BOTTOM, LEFT, RIGHT = 30, 232, 48, WIDTH - 66
MOST = 6.0
"""Largest distance from zero that a panel shows, in margins, so that one ruined model does not flatten the rest."""


def sweep_figures(sweep: Sweep) -> dict[str, list[Figure]]:
    """Panels by candidate, one for each deciding measure; the best candidate first."""
    best = sweep.best.name if sweep.best else ""
    return {
        name: [
            figure
            for measure in sweep.measures
            if (figure := panel(sweep, [one for one in sweep.entries if one.name == name], measure)) is not None
        ]
        for name in sorted(sweep.candidates, key=lambda name: name != best)
    }


def panel(sweep: Sweep, entries: Sequence[Entry], measure: str) -> Figure | None:
    """Draw one measure of one candidate in every job; None if no job measured it."""
    found = [(entry, result) for entry in entries if (result := entry.deciding.get(measure))]
    if not found:
        return None
    gate = found[0][0].verdict.gates[measure]
    x, y = place_scale(sweep.axis), gap_scale([result for _, result in found])
    parts = y_axis(y, x.start, x.end, [(v, tick(v, gate.measure.unit)) for v in linear_ticks(y.low, y.high, 4)])
    parts += limits(sweep, found, x, y) + x_axis(x, BOTTOM, ticks(sweep.axis, x), axis_title(sweep.axis, x))
    parts += trend(sweep, {entry.job: result for entry, result in found}, x, y)
    for entry, result in found:
        parts += mark(x(sweep.axis.places[entry.job]), y, result, entry is sweep.best)
    absent = set(range(len(sweep.jobs))) - {entry.job for entry, _ in found}
    parts += [text(x(sweep.axis.places[job]), BOTTOM - 7, "none", "middle", "tick") for job in sorted(absent)]
    name, title = entries[0].name, gate.measure.title[:1].upper() + gate.measure.title[1:]
    words = "; ".join(describe(sweep, entry, result, gate) for entry, result in found) + "."
    key = f"sweep-{sweep.candidates.index(name)}-{sweep.measures.index(measure)}"
    heading = text(0, 13, f"{title}, {gap_unit(gate.measure.unit)}", class_="group")
    return Figure(
        title, drawing(key, f"{title} of {name} over {sweep.axis.title}", words, BOTTOM + 42, heading, *parts), ""
    )


def limits(sweep: Sweep, found: Sequence[tuple[Entry, MeasureComparison]], x: Scale, y: Scale) -> list[Markup]:
    """Draw the baseline and the margin: one line, or a stroke for each job if margins differ."""
    baseline, margins = found[0][0].verdict.baseline, {result.margin for _, result in found}
    parts = [line(x.start, y(0), x.end, y(0), "zero"), text(x.end + 6, y(0) + 4, short(baseline, 9), class_="tick")]
    if len(margins) == 1 and (margin := margins.pop()) is not None:
        level = y(-margin)
        return [
            *parts,
            line(x.start, level, x.end, level, "margin"),
            text(x.end + 6, max(level + 4, y(0) + 17), "margin", class_="tick no"),
        ]
    places = [(x(sweep.axis.places[entry.job]), y(-(result.margin or 0.0))) for entry, result in found]
    return parts + [line(place - 9, level, place + 9, level, "margin") for place, level in places]


def trend(sweep: Sweep, results: Mapping[int, MeasureComparison], x: Scale, y: Scale) -> list[Markup]:
    """Draw a thin line through the differences along a numeric axis, broken at missing ones."""
    order = sorted(range(len(sweep.jobs)), key=sweep.axis.places.__getitem__) if sweep.axis.numeric else []
    runs = [list(jobs) for known, jobs in groupby(order, key=results.__contains__) if known]
    return [
        polyline([(x(sweep.axis.places[job]), y(results[job].difference)) for job in jobs], "curve train")
        for jobs in runs
    ]


def mark(place: float, y: Scale, result: MeasureComparison, best: bool) -> list[Markup]:
    """Draw a difference with its bounds, or an arrow if it is outside the panel."""
    if y.low <= result.difference <= y.high:
        whisker = line(place, y(result.low), place, y(result.high), "whisker")
        inside = [whisker, marker(place, y(result.difference), ANSWER_SHAPES[result.answer])]
    else:
        tip, back = (y.start, -9) if result.difference < y.low else (y.end, 9)
        inside = [
            element(
                "path",
                d=f"M{place - 5:g} {tip + back:g}L{place:g} {tip:g}l5 {back}M{place:g} {tip:g}v{3 * back}",
                class_="arrow",
            )
        ]
    parts = [element("g", *inside, class_=result.answer)]
    return [*parts, text(place, y(result.high) - 6, "best", "middle", "label")] if best else parts


def place_scale(axis: Axis) -> Scale:
    """Axis of the swept values, or of the jobs in order, with space at both ends."""
    low, high = min(axis.places), max(axis.places)
    if axis.log:
        padding = (high / low) ** 0.08
        return Scale(low / padding, high * padding, LEFT, RIGHT, log=True)
    padding = (0.08 if axis.numeric else 0.5 / max(1.0, high - low)) * (high - low) or 0.5
    return Scale(low - padding, high + padding, LEFT, RIGHT)


def gap_scale(results: Sequence[MeasureComparison]) -> Scale:
    """Axis over all bounds, the baseline and the margin, at most MOST margins to either side."""
    margin = max(result.margin or 0.0 for result in results)
    low = max(-MOST * margin, min(-1.3 * margin, *(result.low for result in results)))
    high = min(MOST * margin, max(0.4 * margin, *(result.high for result in results)))
    padding = 0.05 * (high - low)
    return Scale(low - padding, high + padding, BOTTOM, TOP)


def ticks(axis: Axis, x: Scale) -> list[tuple[float, str]]:
    """Ticks at the swept values if they fit, else at round numbers or the jobs' numbers."""
    own = sorted(zip(axis.places, axis.labels, strict=True))
    if fits(own, x):
        return own
    if axis.numeric:
        return [
            (value, f"{value:g}") for value in (log_ticks(x.low, x.high) if axis.log else linear_ticks(x.low, x.high))
        ]
    step = next(
        step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if fits([(p, f"{p:g}") for p in axis.places[::step]], x)
    )
    return [(place, f"{place:g}") for place in axis.places[::step]]


def fits(labels: Sequence[tuple[float, str]], x: Scale) -> bool:
    """Return True if all labels fit into the panel without touching each other."""
    spans = [
        (x(place) - TEXT_WIDTH * len(label) / 2, x(place) + TEXT_WIDTH * len(label) / 2) for place, label in labels
    ]
    inside = all(low >= 0 and high <= WIDTH for low, high in spans)
    return inside and all(high + 6 <= low for (_, high), (low, _) in zip(spans, spans[1:], strict=False))


def axis_title(axis: Axis, x: Scale) -> str:
    """Title of the axis: the swept setting, or the jobs' numbers if their labels do not fit."""
    by_number = not axis.numeric and not fits(sorted(zip(axis.places, axis.labels, strict=True)), x)
    return "job (see the table)" if by_number else short(axis.title, 52)


def tick(value: float, unit: str) -> str:
    """A difference at a tick of an axis."""
    shown = 100 * value if unit == SHARE else value
    return f"{shown:+.4g}".replace("-", MINUS) if value else "0"


def describe(sweep: Sweep, entry: Entry, result: MeasureComparison, gate: Gate) -> str:
    """Describe one point in words."""
    unit = gate.measure.unit
    bounds = interval(result.low, result.high, unit)
    return f"{sweep.axis.labels[entry.job]} {gap(result.difference, unit)} {gap_unit(unit)} {bounds}: non-inferior {result.answer}"
