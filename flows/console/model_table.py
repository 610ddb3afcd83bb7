"""Console table of the models at the end of a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tasks.report.words.wording import lowest_retention, times_faster, times_smaller
from tasks.shared.formats.verdict import Verdict
from tasks.shared.text.numbers import (
    MINUS,
    MISSING,
    SHARE,
    amount,
    byte_size,
    gap,
    interval,
    parameters,
    percent,
    score_interval,
    seconds,
    times,
)

ABSENT = "-"
NARROW_NAME = 12
"""Width from which names of references and repeats wrap in a narrow console."""
STYLES = {"ship": "green", "not enough data": "yellow", "do not ship": "red"}


@dataclass(frozen=True)
class Column:
    """One column: its heading and the cell of a model.

    text: True for text (aligned left), False for numbers (aligned right).
    measure: True for a score.  timed: True if it needs a measured speed.
    """

    heading: str
    cell: Callable[[Verdict, str], str]
    text: bool = False
    measure: bool = False
    timed: bool = False


def _size(verdict: Verdict, name: str) -> str:
    return byte_size(verdict.models[name].size_bytes)


def _smaller(verdict: Verdict, name: str) -> str:
    return times(times_smaller(verdict, name))


def _faster(verdict: Verdict, name: str) -> str:
    return times(times_faster(verdict, name))


def _speed(verdict: Verdict, name: str) -> str:
    spread = verdict.models[name].tokens_per_second
    return ABSENT if spread is None else f"{spread.median:.0f}"


def _parameters(verdict: Verdict, name: str) -> str:
    return parameters(verdict.models[name].parameters)


def _first_token(verdict: Verdict, name: str) -> str:
    return seconds(verdict.models[name].time_to_first_token_s)


def _memory(verdict: Verdict, name: str) -> str:
    return byte_size(verdict.models[name].peak_memory_bytes)


def _score(measure: str, places: int = 1, bounds: bool = False) -> Callable[[Verdict, str], str]:
    def cell(verdict: Verdict, name: str) -> str:
        unit = verdict.gates[measure].measure.unit
        if verdict.mode == "adaptive" and (comparison := verdict.comparisons.get(name)):
            # A model that left early has answered other items than the baseline, so that their scores are not comparable.
            found = comparison.measures.get(measure)
            value = gap(found.difference if found else None, unit)
            if not places and unit == SHARE and len(value) > len("-1.5"):
                value = f"{100 * found.difference:+.0f}".replace("-", MINUS) if found else value
            return f"{value} {interval(found.low, found.high, unit)}" if bounds and found else value
        score = verdict.models[name].scores.get(measure)
        value = amount(score.value if score else None, unit, places)
        return f"{value} {score_interval(score, unit)}" if bounds and score else value

    return cell


def _items(verdict: Verdict, name: str) -> str:
    """Items of the measures that decide, from the fewest to the most."""
    scores = verdict.models[name].scores
    numbers = sorted({scores[measure].n for measure in verdict.margin or verdict.gates if measure in scores})
    return ABSENT if not numbers else "-".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))


def _kept(verdict: Verdict, name: str) -> str:
    lowest = lowest_retention(verdict.comparisons.get(name))
    return ABSENT if lowest is None else percent(lowest[1], 0)


def _verdict(verdict: Verdict, name: str) -> str:
    comparison = verdict.proposed.get(name)
    return comparison.decision if comparison else verdict.models[name].role


def _name(_: Verdict, name: str) -> str:
    return name


def layouts(verdict: Verdict) -> list[tuple[int, list[Column]]]:
    """Padding and columns of each layout, from the widest to the narrowest.

    All of them have model, size, two measures and the verdict.
    """
    model, decided = Column("model", _name, text=True), Column("verdict", _verdict, text=True)
    cost = [Column("size", _size), Column("x smaller", _smaller)]
    speed = [Column("tokens/s", _speed, timed=True), Column("x faster", _faster, timed=True)]
    more = [
        Column("parameters", _parameters),
        Column("first token", _first_token, timed=True),
        Column("memory", _memory, timed=True),
    ]
    measures = list(verdict.margin or verdict.gates)
    names = {measure: measure.replace("_", " ") for measure in measures}
    plain = [Column(names[measure], _score(measure), measure=True) for measure in measures]
    level = "bounds" if verdict.mode == "adaptive" else "95 %"
    bounds = [Column(f"{names[measure]} [{level}]", _score(measure, bounds=True), measure=True) for measure in measures]
    kept = [Column("kept", _kept)]
    if verdict.mode == "adaptive":
        kept = [Column("items", _items), *kept]
    short_cost = [Column("size", _size), Column("x\nsmaller", _smaller)]
    short_speed = [Column("tokens\n/s", _speed, timed=True), Column("x\nfaster", _faster, timed=True)]
    short = [Column(measure.replace("_", "\n"), _score(measure, places=0), measure=True) for measure in measures]
    items = kept[:-1]
    fewer = [short[:most] for most in range(len(short), 1, -1)] or [short]
    found = [
        (1, [model, *cost, *more, *speed, *bounds, *kept, decided]),
        (1, [model, *cost, *speed, *bounds, *kept, decided]),
        (1, [model, *cost, *more, *speed, *plain, *kept, decided]),
        (1, [model, *cost, *speed, *plain, *kept, decided]),
        (0, [model, *short_cost, *short_speed, *short, *kept, decided]),
        (0, [model, *short_cost, short_speed[1], *short, *kept, decided]),
        *((0, [model, *short_cost, short_speed[1], *some, *items, decided]) for some in fewer),
        (0, [model, short_cost[0], *short[:2], *items, decided]),
    ]
    timed = any(found.tokens_per_second or found.speed_ratio for found in verdict.models.values())
    return [(gap, [one for one in columns if timed or not one.timed]) for gap, columns in found]


class ModelTable(Table):
    """A table that prints the widest layout with one line per model for the console's width."""

    def __init__(self, layouts: Sequence[Table]) -> None:
        super().__init__()
        self.layouts = layouts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the layout for this width."""
        yield self.layout(console, options)

    @property
    def spaced(self) -> Table:
        """Narrowest layout whose headings and names stay in one line, as Markdown needs."""
        return [table for table in self.layouts if table.padding[1]][-1]

    def layout(self, console: Console, options: ConsoleOptions) -> Table:
        """Return the first layout whose full width fits, or the narrowest."""
        free = options.update(max_width=10_000)
        fitting = (t for t in self.layouts if Measurement.get(console, free, t).maximum <= options.max_width)
        return next(fitting, self.layouts[-1])

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Measure the layout that would be printed: from the narrowest to the widest."""
        narrow = Measurement.get(console, options, self.layouts[-1])
        wide = Measurement.get(console, options, self.layouts[0])
        return Measurement(narrow.minimum, wide.maximum)


def _style(verdict: Verdict, name: str) -> str:
    comparison = verdict.proposed.get(name)
    if comparison is None:
        return "" if name == verdict.baseline else "dim"
    return STYLES[comparison.decision]


def _table(verdict: Verdict, columns: Sequence[Column], gap: int) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, gap), collapse_padding=True, header_style="bold")
    names = max(NARROW_NAME, *(len(name) for name in (verdict.baseline, *verdict.comparisons)))
    for column in columns:
        table.add_column(
            column.heading,
            justify="left" if column.text else "right",
            vertical="bottom",
            no_wrap=column.heading != "model",
            overflow="fold",
            max_width=names if column.heading == "model" and not gap else None,
        )
    for name in verdict.models:
        # Text, not str: a model's name may hold square brackets, which rich would read as markup.
        cells = [Text(column.cell(verdict, name).replace(MISSING, ABSENT)) for column in columns]
        cells[0].stylize("bold" if name == verdict.shipped else "")
        cells[-1].stylize(_style(verdict, name))
        table.add_row(*cells)
    table.caption, table.caption_justify = Text(legend(verdict, columns)), "left"
    return table


def legend(verdict: Verdict, columns: Sequence[Column]) -> str:
    """Line on columns that are relative to the baseline, and on measures without a column."""
    headings = [column.heading.replace("\n", " ") for column in columns]
    words = {"x smaller": "x smaller", "x faster": "x faster", "kept": "kept (the lowest share of a score)"}
    against = ", ".join(words[heading] for heading in headings if heading in words)
    if verdict.mode == "adaptive" and verdict.comparisons:
        parts = [
            part for part in (against, "changes of measures, in points, on the items that both were asked") if part
        ]
        against = "; ".join(parts)
    left_out = len(verdict.margin or verdict.gates) - sum(column.measure for column in columns)
    more = f"{left_out} more {'measures' if left_out > 1 else 'measure'} in a wider terminal." if left_out else ""
    return f"{f'Against {verdict.baseline}: {against}.' if against else ''} {more}".strip()


def model_table(verdict: Verdict) -> Table:
    """Table of all models with size, speed and quality; it adapts to the console's width.

    "x smaller" and "x faster" are relative to the baseline; "kept" is the lowest retention over the measures.  Only measures
    that decide have a column, and a narrow console shows fewer of them and says so.
    """
    return ModelTable([_table(verdict, columns, gap) for gap, columns in layouts(verdict)])
