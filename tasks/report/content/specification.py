"""Table of all models: format, cost and quality.

Models are columns, so any number of measures fits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tasks.report.content.report import ModelRow, Report
from tasks.shared.formats.records import Figure
from tasks.shared.formats.verdict import FIGURES, Score
from tasks.shared.text.numbers import (
    SHARE,
    amount,
    byte_size,
    count,
    duration,
    parameters,
    percent,
    quantity,
    score_interval,
    smaller,
    times,
)


@dataclass(frozen=True)
class Cell:
    """Value with a detail in smaller type, such as its bounds; an empty value is "not measured"."""

    value: str
    detail: str = ""


@dataclass(frozen=True)
class Row:
    """One property of all models."""

    title: str
    detail: str
    cells: list[Cell]


@dataclass(frozen=True)
class Group:
    """Rows of one kind.  words: True for text, which is aligned left."""

    title: str
    rows: list[Row]
    words: bool = False


def specification(report: Report) -> list[Group]:
    """Groups of the table; groups without rows are left out."""
    deciding = {name for name, _ in report.deciding}
    groups = [
        Group("Weights", weight_rows(report)),
        Group(
            "Quality: measures that decide",
            [row for name in report.gates if name in deciding for row in [score_row(report, name)]],
        ),
        Group("Quality: watched", [score_row(report, name) for name in report.gates if name not in deciding]),
        Group("Running it", list(figure_rows(report))),
    ]
    return [group for group in groups if group.rows]


def weight_rows(report: Report) -> list[Row]:
    """Rows about a model's weights and files."""

    def row(title: str, cell: Callable[[ModelRow], Cell], detail: str = "") -> Row:
        return Row(title, detail, [cell(model) for model in report.models])

    return [
        row("Format", lambda m: Cell(m.measured.format)),
        row("Answers generated in", lambda m: Cell(m.measured.engine)),
        row("Speed measured in", lambda m: Cell(m.measured.speed_engine)),
        row("Made by", lambda m: Cell(m.technique or m.role, f"from {m.parent}" if m.parent else "")),
        row("Parameters", lambda m: Cell("" if m.measured.parameters is None else parameters(m.measured.parameters))),
        row(
            "Size on disk",
            lambda m: Cell(
                byte_size(m.measured.size_bytes),
                smaller(m.times_smaller) if m.times_smaller and m.role != "baseline" else "",
            ),
        ),
        row("Lowest retention", retained, "lowest share of the baseline's score, and its measure"),
    ]


def retained(model: ModelRow) -> Cell:
    """Cell of a candidate's lowest retention."""
    if model.lowest_retention is None:
        return Cell("" if model.role in ("candidate", "parent") else "-")
    return Cell(percent(model.lowest_retention.share), model.lowest_retention.measure.replace("_", " "))


def score_row(report: Report, name: str) -> Row:
    """Row of one measure."""
    measure = report.gates[name].measure
    unit = [] if measure.unit == SHARE else [measure.unit]
    detail = ", ".join([*unit, *(["lower is better"] if measure.better == "lower" else [])])
    cells = []
    for model in report.models:
        score = model.measured.scores.get(name)
        cells.append(Cell(amount(score.value, measure.unit), score_detail(report, name, score)) if score else Cell(""))
    return Row(measure.title, detail, cells)


def score_detail(report: Report, name: str, score: Score) -> str:
    """Interval of a score, with the number of items if it differs from the baseline's, or may.

    In an adaptive verdict every model may have been asked another number.
    """
    usual = report.model(report.baseline).measured.scores.get(name)
    bounds = score_interval(score, report.gates[name].measure.unit)
    return (
        bounds
        if usual and usual.n == score.n and report.mode == "fixed"
        else f"{bounds}, n\N{NO-BREAK SPACE}{count(score.n)}"
    )


def figure_rows(report: Report) -> Iterator[Row]:
    """Rows of all figures that some model has, those with a known name first."""
    named = [name for model in report.models for name in model.measured.figures]
    for name in dict.fromkeys([*(name for name in FIGURES if name in named), *named]):
        found = [model.measured.figures.get(name) for model in report.models]
        bounds = sorted({figure.bounds for figure in found if figure and figure.bounds})
        yield Row(figure_title(name), ", ".join(bounds), [figure_cell(figure) for figure in found])


def figure_title(name: str) -> str:
    """Title of a figure in words.

    It knows any number of streams, an engine in brackets ("load_s (vllm)") and any prefix of perplexity.
    """
    plain, _, engine = name.removesuffix(")").partition(" (")
    base, _, streams = plain.partition("_batch_")
    if engine:
        return f"{figure_title(plain)}, in {engine}"
    if streams and f"{base}_batch_8" in FIGURES:
        return FIGURES[f"{base}_batch_8"].replace("8 ", f"{streams} ")
    for known in ("perplexity_per_byte", "perplexity", "tokens_scored"):
        if plain.endswith(known) and plain != known:
            return f"{plain.removesuffix(known).replace('_', ' ').strip()}: {FIGURES[known]}"
    return FIGURES.get(plain, plain.replace("_", " "))


def figure_cell(figure: Figure | None) -> Cell:
    """Cell of a figure in its unit, with its bounds."""
    if figure is None:
        return Cell("")
    forms = {"bytes": byte_size, "s": duration, "share": percent, "x": times, "answers": count, "tokens": count}
    shown = forms.get(figure.unit, quantity)
    unit = "" if figure.unit in ("bytes", "s", "share", "x", "") else f" {figure.unit}"
    bounds = "" if figure.low is None or figure.high is None else f"{shown(figure.low)} to {shown(figure.high)}"
    return Cell(f"{shown(figure.value)}{unit}", bounds)
