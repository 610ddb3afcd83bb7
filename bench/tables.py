"""Tables and command line that the simulations share."""

import argparse
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

console = Console(width=150)


def show(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table with right-aligned cells."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)


def run(about: str | None, tables: Mapping[str, Callable[[Sequence[int]], None]], items: Sequence[int]) -> None:
    """Run the command line of a simulation.

    items: default numbers of items.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=list(tables), help=", ".join(tables))
    parser.add_argument("--items", type=int, nargs="+", default=items)
    options = parser.parse_args()
    for name in options.tables:
        tables[name](options.items)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
