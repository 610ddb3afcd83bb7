"""The output of a first look, as tables that fit 80 columns."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.looking.figures import (
    ALPHA,
    COMPARED,
    FLIPS,
    LANGUAGES,
    POWER,
    TAIL,
    Copies,
    Cost,
    Labels,
    Lengths,
    column_uses,
    count_languages,
    detectable,
    quantile,
)  # fmt: skip
from flows.looking.proposal import Proposal
from flows.looking.sample import DRAWN, FIRST, Sample
from tasks.curate.reading.bad_rows import show_counts
from tasks.curate.reading.layouts import EARLIER, OWN
from tasks.shared.text.numbers import byte_size

EXAMPLE = 32
"""Columns of the terminal for an example of a column."""
MOST = 8
"""Rows of a table that could be long."""


def show_splits(console: Console, files: Mapping[str, str]) -> None:
    """Print which files of a folder are which split; nothing for a single file."""
    if "path" not in files:
        names = ", ".join(f"{Path(path).name} ({name})" for name, path in files.items())
        line(console, "splits", f"{names}; everything below is about the first, except the test items")


def show_file(console: Console, path: str, sample: Sample) -> None:
    """Print what the file is."""
    words = ", ".join(dict.fromkeys(container.words for container in sample.containers))
    line(console, "file", f"{Path(path).name}, {byte_size(sample.bytes)}")
    line(console, "format", f"{words}: {show_counts(dict(sample.reader.formats.most_common())) or 'nothing readable'}")
    number = f"{sample.records}, all looked at"
    if not sample.whole:
        drawn = min(DRAWN, sample.looked - FIRST)
        number = f"{sample.records}; looked at the first {FIRST} and {drawn} drawn at random from the rest"
    line(console, "records", number)
    line(console, "rows", f"{'' if sample.whole else 'about '}{sample.expected_rows} usable")
    for name, task in sample.reader.tasks.items():
        type_ = f"type {task.type}" if name == task.type else f"{name}: type {task.type}"
        line(console, "task", f"{type_}, label layout {task.layout}" if task.labels or task.layout != "none" else type_)
    for words, count in sorted(sample.reader.remarks.items()):
        line(console, "note", f"{count} rows: {words}")
    if sample.reader.left_out:
        line(
            console,
            "note",
            f"not kept as tags where too long or nested: {', '.join(sorted(sample.reader.left_out))}",
        )


def show_proposal(console: Console, proposal: Proposal) -> None:
    """Print why the file is read as another task than a chat."""
    line(console, "note", f"task {proposal.type}, since {proposal.reason}; --task chat reads the answers as free text")


def show_columns(console: Console, sample: Sample) -> None:
    """Print what each column becomes."""
    if sample.reader.formats.keys() & {OWN, EARLIER}:
        line(console, "columns", "those of this project's own rows")
        return
    uses = column_uses(sample.first, sample.rows[0]) if sample.rows else column_uses(sample.other, None)
    if not uses:
        return
    table = Table(title="columns of the first row")
    table.add_column("column", overflow="fold", min_width=8, max_width=20)
    table.add_column("becomes", min_width=12, max_width=20)
    table.add_column("example", no_wrap=True, overflow="ellipsis", max_width=EXAMPLE)
    for name, use, example in uses[:20]:
        table.add_row(Text(name), Text(use), Text(example))
    console.print(table)
    if len(uses) > 20:
        line(console, "note", f"{len(uses) - 20} more columns are not shown")


def show_lengths(console: Console, lengths: Lengths) -> None:
    """Print lengths by part."""
    table = Table(title=f"lengths in {lengths.unit}")
    for name in ("part", "median", "95 %", "longest"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for name, values in (("prompt", lengths.prompt), ("answer", lengths.answer), ("conversation", lengths.whole)):
        if values:
            table.add_row(name, *(str(quantile(values, share)) for share in (0.5, 0.95, 1.0)))
    console.print(table)


def show_labels(console: Console, labels: Labels, rows: int) -> None:
    """Print the most frequent labels and the tail."""
    if not labels.counts:
        return
    table = Table(title=f"{len(labels.counts)} labels in {rows} rows")
    table.add_column("label", max_width=50)
    table.add_column("rows", justify="right")
    for label, count in labels.counts[:MOST]:
        table.add_row(Text(label), str(count))
    if len(labels.counts) > MOST:
        rest = labels.counts[MOST:]
        table.add_row(f"{len(rest)} more", str(sum(count for _, count in rest)))
    console.print(table)
    if tail := labels.tail:
        line(
            console,
            "tail",
            f"labels with {TAIL} rows or fewer, {len(tail)} in all: {', '.join(tail[:MOST])}{' ...' if len(tail) > MOST else ''}",
        )


def show_copies(console: Console, copies: Copies) -> None:
    """Print exact and near-copies."""
    line(
        console,
        "copies",
        f"{copies.exact} exact and {copies.near} near-copies of an earlier row, among {copies.compared} rows",
    )
    for words in (*copies.affixes.before[:2], *copies.affixes.after[:2]):
        line(console, "shared", f"text common to many rows, ignored in the comparison: {words[:100]!r}")


def show_languages(console: Console, sample: Sample) -> None:
    """Print languages, or that none can be told."""
    found = count_languages(sample.rows)
    if found is None:
        line(console, "langs", f"not detected: {LANGUAGES} is not installed")
    else:
        line(console, "langs", f"{show_counts(dict(found))} of {min(COMPARED, len(sample.rows))}")


def show_errors(console: Console, sample: Sample) -> None:
    """Print records that cannot be read, by reason."""
    if not sample.bad.count:
        return
    table = Table(title=f"records that cannot be read: {sample.bad.count}")
    table.add_column("records", justify="right")
    table.add_column("reason, first line, fix")
    for reason, found in sorted(sample.bad.classes.items(), key=lambda item: -item[1].count)[:MOST]:
        detail = f"\n{found.detail}" if found.detail else ""
        fix = f"\nfix: {found.fix}" if found.fix else ""
        table.add_row(str(found.count), Text(f"{reason}\n{found.file} line {found.line}{detail[:300]}{fix}"))
    console.print(table)


def show_test(console: Console, test: int, source: str) -> None:
    """Print the smallest margins that test splits of several sizes could decide.

    test: rows that the plan expects.  source: where they come from.
    """
    table = Table(title="what the test items could decide")
    for name in ("test items", "smallest decidable margin"):
        table.add_column(name, justify="right")
    for items in sorted({test, 100, 300, 1000, 3000}):
        mark = f" ({source})" if items == test else ""
        loss = detectable(items)
        table.add_row(f"{items}{mark}", "none: too few" if loss >= 1 else f"{100 * loss:.1f} points")
    console.print(table)
    line(
        console,
        "basis",
        f"for answers that are right or wrong, if {100 * FLIPS:.0f} % of them change by chance; alpha {ALPHA:g}, power {POWER:g}",
    )


def show_cost(console: Console, cost: Cost, prices: tuple[float, float]) -> None:
    """Print what a teacher would read and write."""
    money = (
        f", for {cost.money:,.2f} at {prices[0]:g} and {prices[1]:g} per million"
        if any(prices)
        else "; --prices IN OUT shows the cost"
    )
    text = f"{tokens(cost.tokens_in)} tokens in, {tokens(cost.tokens_out)} out{money}"
    line(console, "teacher", f"one answer per training row would be {cost.requests} requests, {text}")


def tokens(number: float) -> str:
    """Format a number of tokens in thousands or millions."""
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.0f} k"


def line(console: Console, label: str, text: str, whole: bool = False) -> None:
    """Print a labeled line, with its continuation below the text.

    whole: do not wrap, so that a command can be copied.
    """
    if whole:
        console.print(Text(f"{label:>8}  ", style="bold") + Text(text), soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=8, justify="right", style="bold")
    grid.add_column(overflow="fold")
    grid.add_row(label, Text(text))
    console.print(grid)


def shorter(path: str) -> str:
    """Path as it is, or relative to the working directory if that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(path) else path


def next_steps(path: str, written: Path | None, name: str) -> Iterator[str]:
    """Yield what to do next."""
    if written is None:
        yield f"python -m flows.look {shorter(path)} --write my_conf/recipe/my.yaml"
    elif written.parent.name == "recipe":
        yield f"python -m flows.compress --config-dir {written.parent.parent} +recipe={name} dry_run=true"
    else:
        yield f"move {written} to a folder recipe/, as my_conf/recipe/{name}.yaml, then:"
        yield f"python -m flows.compress --config-dir my_conf +recipe={name} dry_run=true"
