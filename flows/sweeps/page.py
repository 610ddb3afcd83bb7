"""Page of a sweep: plots, jobs and the best candidate in one self-contained HTML file."""

import os
import shlex
from pathlib import Path

from flows.console.show import first_line
from flows.sweeps.caveats import best_line, caveats, reading
from flows.sweeps.figures import sweep_figures
from flows.sweeps.results import Sweep, table_rows
from tasks.report.page.render import templates
from tasks.shared.files import write_text
from tasks.shared.store.artifacts import disk_errors

FOLDER = ".sweeps"
"""Folder of the pages, in the folder of all artifacts; the same sweep writes the same page."""


def write_page(sweep: Sweep) -> Path:
    """Write the page of a sweep that has a best candidate; return its path.

    Raises MachineError.
    """
    assert sweep.best is not None
    path = sweep.jobs[sweep.best.job].home / FOLDER / f"{sweep.name}.html"
    with disk_errors(path.parent):
        path.parent.mkdir(exist_ok=True)
        write_text(path, render(sweep, path.parent))
    return path


def render(sweep: Sweep, folder: Path, theme: str = "auto") -> str:
    """Return the page as text.

    folder: future folder of the page, for links to the jobs' reports.
    """
    reports = {
        number: Path(os.path.relpath(job.folders[job.report] / "report.html", folder)).as_posix()
        for number, job in enumerate(sweep.jobs)
        if job.report
    }
    return (
        templates(Path(__file__).parent)
        .get_template("sweep.jinja")
        .render(
            sweep=sweep,
            best=sweep.best,
            line=best_line(sweep),
            reading=reading(sweep),
            notes=caveats(sweep),
            versus=versus(sweep),
            figures=sweep_figures(sweep),
            rows=table_rows(sweep),
            reports=reports,
            errors={number: first_line(job.error) for number, job in enumerate(sweep.jobs) if job.error},
            theme=theme,
        )
    )


def versus(sweep: Sweep) -> str:
    """Command that compares the best model with its nearest rival; empty if there is none."""
    best, rivals = sweep.best, sorted(sweep.rivals, key=lambda entry: entry.rank, reverse=True)
    if best is None or not rivals:
        return ""
    folders = [sweep.jobs[entry.job].folders.get(entry.name) for entry in (rivals[0], best)]
    return "" if None in folders else shlex.join(["python", "-m", "flows.compare", *map(str, folders)])
