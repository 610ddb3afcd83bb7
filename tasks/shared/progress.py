"""Progress bars on standard error; plain lines when it is not a terminal.

Under a flow, which may run several steps at once, a step draws nothing: it writes its progress to the file named by
$STILLROOM_PROGRESS, and the flow draws the bar.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # a step under a flow draws nothing and starts faster without this import
    from rich.console import Console
    from rich.progress import Progress

Item = TypeVar("Item")
LINE_EVERY_S = 20.0
"""Seconds between lines when there is no terminal, where a bar would fill the log."""

REPORT_VARIABLE = "STILLROOM_PROGRESS"
"""Environment variable that names the progress file."""
REPORT_EVERY_S = 0.5


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    """Show a bar of `total` units; yields `advance(count=1, note="")`, which is thread-safe."""
    if report := os.environ.get(REPORT_VARIABLE):
        yield _reporter(Path(report), description, total)
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line_writer(console, description, total)
        return
    with bars(console) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(count: int = 1, note: str | None = None) -> None:
            bar.update(task, advance=count)
            if note is not None:
                bar.update(task, note=note)

        yield advance


def bars(console: "Console") -> "Progress":
    """Progress display with this project's columns."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=console, transient=True)


def _reporter(file: Path, description: str, total: int) -> Callable[..., None]:
    done, last, latest = 0, 0.0, ""

    def advance(count: int = 1, note: str | None = None) -> None:
        nonlocal done, last, latest
        done, latest = done + count, latest if note is None else note
        now = time.monotonic()
        if now - last >= REPORT_EVERY_S or done >= total:
            last = now
            content = {"description": description, "done": done, "total": total, "note": latest}
            # Not through tasks/shared/files.py: this module is in no key, so it must not import one that is.
            temporary = file.with_suffix(".new")
            with suppress(OSError):  # a report that cannot be written must not end the work
                temporary.write_text(json.dumps(content), "utf-8")
                temporary.replace(file)

    advance(0)
    return advance


def _line_writer(console: "Console", description: str, total: int) -> Callable[..., None]:
    started = last = time.monotonic()
    done = 0

    def advance(count: int = 1, note: str | None = None) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= LINE_EVERY_S:
            last = now
            console.print(
                f"{description}: {done} of {total}, {now - started:.0f} s {note or ''}".rstrip(),
                markup=False,
                highlight=False,
            )

    return advance


@contextmanager
def no_foreign_bars() -> Iterator[None]:
    """Suppress the tqdm bars of libraries, even where they override TQDM_DISABLE."""
    from tqdm import tqdm

    start = tqdm.__init__

    def disabled(bar: Any, *args: Any, **kwargs: Any) -> None:
        start(bar, *args, **(kwargs | {"disable": True}))

    tqdm.__init__ = disabled
    try:
        yield
    finally:
        tqdm.__init__ = start


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Iterate over `items` with a progress bar."""
    with progress_bar(description, total) as advance:
        for item in items:
            yield item
            advance()
