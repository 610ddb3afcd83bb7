"""Console during a run: a progress bar per running step, with log lines above."""

import threading
import time
from typing import Any

from rich.console import Console
from rich.markup import escape

from flows.running.child import Progress
from tasks.shared.progress import LINE_EVERY_S, bars


class Board:
    """Progress bars on a terminal, or occasional lines without one.

    A context manager, safe to use from several threads.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.live = bars(self.console) if self.console.is_terminal else None
        self.rows: dict[str, Any] = {}
        self.began: dict[str, float] = {}
        self.reported: dict[str, float] = {}
        self.lock = threading.Lock()

    def __enter__(self) -> "Board":
        """Start the display."""
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bars and keep the printed lines."""
        if self.live:
            self.live.stop()

    def begin(self, step: str) -> None:
        """Add a step whose process starts."""
        with self.lock:
            self.began[step] = self.reported[step] = time.monotonic()
            if self.live:
                self.rows[step] = self.live.add_task(escape(step), total=None, note="")

    def line(self, step: str, text: str) -> None:
        """Print a line of a step's output."""
        self.console.print(f"[dim]{escape(step)} |[/dim] {escape(text)}", highlight=False, soft_wrap=True)

    def progress(self, step: str, progress: Progress) -> None:
        """Show the progress of a step."""
        with self.lock:
            if self.live and step in self.rows:
                self.live.update(
                    self.rows[step],
                    description=escape(f"{step}: {progress.description}"),
                    completed=progress.done,
                    total=progress.total,
                    note=escape(progress.note),
                )
            elif time.monotonic() - self.reported.get(step, 0) >= LINE_EVERY_S:
                self.reported[step] = time.monotonic()
                seconds = time.monotonic() - self.began.get(step, self.reported[step])
                text = f"{progress.description}: {progress.done} of {progress.total}, {seconds:.0f} s {progress.note}"
                self.line(step, text.rstrip())

    def end(self, step: str) -> None:
        """Remove a step whose process has ended."""
        with self.lock:
            if self.live and step in self.rows:
                self.live.remove_task(self.rows.pop(step))
