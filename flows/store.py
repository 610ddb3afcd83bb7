"""Show the artifact store, or delete unused artifacts.

python -m flows.store                      artifacts by step
python -m flows.store gc --older 30        delete unused artifacts
python -m flows.store gc --older 30 --dry-run

An artifact is unused if it is in no recipe's folder and no run has used it
for DAYS days.  The same holds for unfinished work and cached predictions.
"""

import argparse
import logging
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from flows.console import exit_codes
from flows.console.terminal import prepare_terminal
from tasks.shared.errors import ConfigError, StillroomError
from tasks.shared.store.artifacts import SHORT, Place, Store, disk_errors
from tasks.shared.store.keys import PROJECT

log = logging.getLogger("stillroom")
DAY_S = 86_400


@dataclass(frozen=True)
class Entry:
    """A folder of the store, of unfinished work, or of a technique's partial results.

    shown: a recipe's folder holds it.
    used: unix time of its last use.
    """

    step: str
    key: str
    folder: Path
    bytes: int
    shown: bool
    used: float
    finished: bool


def entries(store: Store) -> Iterator[Entry]:
    """Yield everything in the store, in the work folder and in the cache of predictions."""
    shown = {str((view.read_manifest() or {}).get("key"))[:SHORT] for view in store.views()}
    for folder in sorted(store.home.glob(".store/*/*")):
        key = folder.name.strip(".").partition(".")[0]
        finished = folder.name == key and Place(folder).manifest.is_file()
        yield Entry(folder.parent.name, key, folder, size(folder), finished and key in shown, used(folder), finished)
    for folder in sorted(store.home.glob(".work/*")):
        step, _, key = folder.name.rpartition("-")
        yield Entry(step, key, folder, size(folder), False, used(folder), finished=False)
    for folder in sorted(store.home.glob(".predictions/*/*")):
        yield Entry(
            f"{folder.parent.name} (predictions)", folder.name, folder, size(folder), False, used(folder), finished=True
        )


def size(folder: Path) -> int:
    """Bytes below a folder."""
    return sum(state.st_size for state in map(_state, folder.rglob("*")) if state and stat.S_ISREG(state.st_mode))


def used(folder: Path) -> float:
    """Unix time at which an artifact was last made or found, or a work folder last changed."""
    return max((state.st_mtime for state in map(_state, [folder, *folder.glob("*")]) if state), default=0.0)


def _state(path: Path) -> os.stat_result | None:
    """A file's state, or None if it has just been deleted."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def collect(store: Store, days: float, dry_run: bool) -> list[Entry]:
    """Delete entries that no run holds or has used for this many days; return them."""
    gone = []
    for entry in entries(store):
        if entry.shown or time.time() - entry.used < days * DAY_S:
            continue
        try:
            with store.lock(entry.key, wait=False):
                if used(entry.folder) > entry.used:
                    continue
                if not dry_run:
                    shutil.rmtree(entry.folder, ignore_errors=True)
        except Timeout:
            continue
        gone.append(entry)
    return gone


def show(found: Sequence[Entry]) -> None:
    """Print a table of the store by step."""
    from rich.console import Console
    from rich.table import Table

    from tasks.shared.text.numbers import byte_size, duration

    table = Table(title="artifact store")
    for name in ("step", "artifacts", "shown by a recipe", "unfinished", "size", "last used"):
        table.add_column(name, justify="left" if name == "step" else "right")
    for step in sorted({entry.step for entry in found}):
        own = [entry for entry in found if entry.step == step]
        finished = [entry for entry in own if entry.finished]
        table.add_row(
            step,
            str(len(finished)),
            str(sum(entry.shown for entry in own)),
            str(len(own) - len(finished)),
            byte_size(sum(entry.bytes for entry in own)),
            f"{duration(time.time() - max(entry.used for entry in own))} ago",
        )
    console = Console()
    console.print(table)
    console.print(
        f"{byte_size(sum(entry.bytes for entry in found))} in all; files shared with DVC's cache take no extra space",
        highlight=False,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.  Exit codes: 0 done, 2 an error."""
    prepare_terminal()
    parser = argparse.ArgumentParser(
        prog="python -m flows.store", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", nargs="?", choices=("show", "gc"), default="show", help="default: show")
    parser.add_argument("--root", type=Path, default=PROJECT, metavar="FOLDER", help="the runs' runtime.root")
    parser.add_argument(
        "--older", type=float, default=30.0, metavar="DAYS", help="gc: delete artifacts unused for this many days (30)"
    )
    parser.add_argument("--dry-run", action="store_true", help="gc: only list the artifacts")
    options = parser.parse_args(arguments)
    try:
        if options.older < 0 or not (options.root / "artifacts").is_dir():
            where, got = ("--older", options.older) if options.older < 0 else ("--root", options.root)
            raise ConfigError(where, str(got), "days, 0 or more" if options.older < 0 else "a folder with artifacts/")
        store = Store(options.root.resolve())
        if options.action == "show":
            show(list(entries(store)))
            return 0
        with disk_errors(options.root):
            gone = collect(store, options.older, options.dry_run)
        from tasks.shared.text.numbers import byte_size

        for entry in gone:
            log.info("%s %s (%s)", entry.step, entry.key, byte_size(entry.bytes))
        verb = "would be deleted" if options.dry_run else "deleted"
        log.info("%d %s, %s", len(gone), verb, byte_size(sum(entry.bytes for entry in gone)))
    except StillroomError as error:
        log.error("%s", error)
        return exit_codes.USER
    return 0


if __name__ == "__main__":
    sys.exit(main())
