"""Render the report page.

Names, questions and answers are untrusted; the templates escape all of them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.report.content.cards import readable
from tasks.report.content.report import Report
from tasks.report.words.result import reason
from tasks.shared.store.keys import flatten
from tasks.shared.text import numbers

if TYPE_CHECKING:
    from jinja2 import Environment

    from tasks.report.figures.drawing import Figure

FILTERS = (
    "amount", "byte_size", "count", "duration", "gap", "gap_unit", "margin", "p_value", "parameters", "percent", "points", "quantity",
    "score_interval", "seconds", "smaller", "times",
)  # fmt: skip


NO_BREAK = "\N{NO-BREAK SPACE}"


def render(report: Report, figures: "Mapping[str, Sequence[Figure]]", theme: str = "auto") -> str:
    """Render a report as one self-contained HTML text.

    figures: by section, as `all_figures` draws them.  theme: "auto", "light" or "dark".
    """
    from tasks.report.content.slice_tables import slice_tables
    from tasks.report.content.specification import specification
    from tasks.report.documents.bill_of_materials import list_materials

    return (
        templates()
        .get_template("html.jinja")
        .render(
            report=report,
            figures=figures,
            slices=slice_tables(report),
            materials=list_materials(report),
            specification=specification(report),
            theme=theme,
        )
    )


def templates(*folders: Path) -> "Environment":
    """Jinja environment with the report's templates, style sheet and filters.

    folders: searched for templates before the report's own.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from tasks.report.words.diff import word_runs

    environment = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(numbers, name) for name in FILTERS} | {
        "reason": reason,
        "sentence": sentence,
        "unbroken": unbroken,
        "flat": flat,
    }
    environment.globals |= {"interval": numbers.interval, "missing": numbers.MISSING, "word_runs": word_runs}
    return environment


def sentence(words: str) -> str:
    """Return the words with a capital first letter."""
    return words[:1].upper() + words[1:]


def unbroken(words: str) -> str:
    """Return the words with numbers that no line break separates from their unit."""
    return re.sub(r"(\d) (%|[kMG]?B\b|points\b)|\b(margin) (\d)", lambda found: found[0].replace(" ", NO_BREAK), words)


def flat(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Flatten nested settings to dotted names and readable values."""
    return [(name, readable(value)) for name, value in flatten(settings).items()]
