"""Tables of the simulations, and the command line that they share."""

import argparse
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

console = Console(width=150)


def show(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table whose cells stand to the right."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)


def run(about: str | None, tables: Mapping[str, Callable[[Sequence[int]], None]], items: Sequence[int]) -> None:
    """The command line.  items: for how many items unless it says otherwise."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=list(tables), help=", ".join(tables))
    parser.add_argument("--items", type=int, nargs="+", default=items)
    options = parser.parse_args()
    for name in options.tables:
        tables[name](options.items)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
