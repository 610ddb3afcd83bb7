"""Console output of a sweep: table of jobs, best candidate, limits of the evidence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.console.model_table import ABSENT, STYLES, ModelTable
from flows.console.show import duration, first_line
from flows.sweeps.caveats import best_line, caveats, reading
from flows.sweeps.results import Entry, Row, Sweep, table_rows
from tasks.shared.text.numbers import MINUS, byte_size, gap, interval

LEAST_MEASURES = 2
"""Number of measures that a narrow console shows."""


@dataclass(frozen=True)
class Column:
    """One column: its heading, and the cell of a row."""

    heading: str
    cell: Callable[[Row], str]
    text: bool = False


def show_jobs(sweep: Sweep, console: Console | None = None) -> None:
    """Print the jobs in one table, then the best candidate and the limits of the evidence."""
    console = console or Console()
    varied = f" over {', '.join(sweep.varied)}" if sweep.varied else ""
    console.print(f"{len(sweep.jobs)} jobs{varied}", style="bold", markup=False, highlight=False)
    console.print(job_table(sweep))
    for number, job in enumerate(sweep.jobs):
        if job.error:
            line = f"job {number} failed: {first_line(job.error)}"
            console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    if sweep.best is None:
        return
    console.print(reading(sweep), style="dim", markup=False, highlight=False)
    console.print(best_line(sweep), style="bold", markup=False, highlight=False)
    for line in caveats(sweep):
        console.print(line, markup=False, highlight=False)
    if folder := sweep.jobs[sweep.best.job].folders.get(sweep.best.name):
        console.print(f"  model  {folder}", markup=False, highlight=False, soft_wrap=True)


def job_table(sweep: Sweep) -> ModelTable:
    """Table with a row per candidate; a narrow console shows no bounds, sizes or times."""
    number = Column("job", lambda row: str(row.job) if row.first else "")
    brief = Column("overrides", lambda row: sweep.labels[row.job] if row.first else "", text=True)
    whole = Column(
        "overrides", lambda row: (" ".join(sweep.own[row.job]) or "as written") if row.first else "", text=True
    )
    named = [Column("candidate", lambda row: row.entry.name if row.entry else ABSENT, text=True)]
    named = named if len(sweep.candidates) > 1 else []
    bounds = [Column(f"{name.replace('_', ' ')} [bounds]", _difference(name, bounds=True)) for name in sweep.measures]
    plain = [Column(name.replace("_", "\n"), _difference(name)) for name in sweep.measures]
    headroom = [Column("headroom", lambda row: _headroom(row.entry))] if sweep.entries else []
    size = (
        [Column("size", lambda row: byte_size(row.entry.size) if row.entry and row.entry.size else ABSENT)]
        if sweep.entries
        else []
    )
    result = Column("verdict" if sweep.entries else "result", lambda row: _result(sweep, row), text=True)
    time = Column("time", lambda row: duration(sweep.jobs[row.job].seconds) if row.first else "")
    layouts = [
        [number, whole, *named, *bounds, *headroom, *size, result, time],
        [number, brief, *named, *bounds, *headroom, *size, result, time],
        [number, brief, *named, *bounds, *headroom, result],
        [number, brief, *named, *plain, *headroom, *size, result, time],
        [number, brief, *named, *plain, *headroom, result, time],
        [number, brief, *named, *plain, *headroom, result],
        [number, brief, *named, *plain[:LEAST_MEASURES], *headroom, result],
    ]
    rows = table_rows(sweep)
    return ModelTable([_table(sweep, rows, columns) for columns in layouts])


def _difference(measure: str, bounds: bool = False) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        found = row.entry.deciding.get(measure) if row.entry else None
        if row.entry is None or found is None:
            return ABSENT
        unit = row.entry.verdict.gates[measure].measure.unit
        return gap(found.difference, unit) + (f" {interval(found.low, found.high, unit)}" if bounds else "")

    return cell


def _headroom(entry: Entry | None) -> str:
    if entry is None or entry.headroom == float("-inf"):
        return ABSENT
    return f"{entry.headroom:+.2f}".replace("-", MINUS)


def _result(sweep: Sweep, row: Row) -> str:
    job = sweep.jobs[row.job]
    if job.error:
        return "failed"
    return row.entry.comparison.decision if row.entry else "done"


def _table(sweep: Sweep, rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold")
    for column in columns:
        table.add_column(
            column.heading,
            justify="left" if column.text else "right",
            vertical="bottom",
            no_wrap=column.heading not in {"overrides", "candidate"},
            overflow="fold",
        )
    for row in rows:
        # Text, not str: an override may hold square brackets, which rich would read as markup.
        cells = [Text(column.cell(row)) for column in columns]
        style = "bold" if row.entry is not None and row.entry is sweep.best else ""
        for column, cell in zip(columns, cells, strict=True):
            if column.heading in {"verdict", "result"}:
                cell.stylize("red" if cell.plain == "failed" else STYLES.get(cell.plain, ""))
        table.add_row(*cells, style=style)
    return table
