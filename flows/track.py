"""Show the records of runs that wait for their tracking server, or send them.

python -m flows.track                     show the records and their servers
python -m flows.track flush               send them
python -m flows.track flush --uri URI     send them to another server

Exit codes: 0 shown or all sent; 1 some records still wait, none is lost;
2 an error.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.console import exit_codes
from flows.console.terminal import prepare_terminal
from flows.tracking.outbox import DAMAGED, base, list_outboxes
from tasks.shared.errors import StillroomError
from tasks.shared.store.keys import PROJECT

log = logging.getLogger("stillroom")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.track",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", nargs="?", choices=["show", "flush"], default="show", help="default: show")
    parser.add_argument("--uri", default="", help="tracking server; default: the server of each run")
    parser.add_argument("--root", type=Path, default=PROJECT, metavar="FOLDER", help="the runs' runtime.root")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    prepare_terminal()
    options = parse(arguments)
    root = options.root.expanduser().resolve()
    try:
        return send(root, options.uri) if options.action == "flush" else show(root)
    except StillroomError as error:
        log.error("%s", error)
        return exit_codes.USER
    except OSError as error:
        log.error("%s: %s\n  nothing is lost; unsent records are kept", error.filename or root, error.strerror)
        return exit_codes.USER


def show(root: Path) -> int:
    """Print a table of the runs with unsent records."""
    from datetime import datetime

    from rich.console import Console
    from rich.table import Table

    console = Console()
    outboxes = [outbox for outbox in list_outboxes(root) if outbox.header() or outbox.files()]
    table = Table(title="runs with unsent records", caption="send them: python -m flows.track flush")
    for name in ("recipe", "started", "events", "address", "process"):
        table.add_column(name, justify="right" if name == "events" else "left", overflow="fold")
    for outbox in outboxes:
        header = outbox.header()
        started = datetime.fromtimestamp(header.started / 1000).astimezone() if header else None
        table.add_row(
            header.experiment if header else "?",
            f"{started:%Y-%m-%d %H:%M}" if started else "?",
            str(len(outbox.files())),
            header.address if header else "?",
            "running" if outbox.alive() else "ended",
        )
    if outboxes:
        console.print(table)
    else:
        console.print("no records wait")
    if aside := sorted((base(root) / DAMAGED).glob("*")):
        console.print(f"set aside, unreadable: {len(aside)} in {base(root) / DAMAGED}", markup=False, soft_wrap=True)
    return 0


def send(root: Path, uri: str) -> int:
    """Send the waiting records and print the result."""
    from rich.console import Console

    from flows.tracking.delivery import flush

    found = flush(root, uri)
    console = Console(soft_wrap=True, markup=False, highlight=False)
    console.print(f"{found.sent} events sent, {found.waiting} waiting")
    for file in found.aside:
        console.print(f"set aside, unreadable: {file}")
    for problem in found.problems:
        console.print(f"not sent: {problem}")
    return 1 if found.problems or found.waiting else 0


if __name__ == "__main__":
    sys.exit(main())
