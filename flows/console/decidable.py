"""Margins that a plan's test items can decide: a sentence for one, a table for several."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tasks.shared.items import Decidable


def show_decidable(console: Console, found: Sequence[Decidable]) -> None:
    """Print the smallest margin that each measure's test items can decide, next to the recipe's."""
    if len(found) == 1:
        console.print(sentence(found[0]), markup=False, highlight=False)
    elif found:
        console.print(table(found))


def sentence(one: Decidable) -> str:
    """Sentence on one margin.

    For example "label: up to 240 test items; enough to decide a margin of 4.2 points (yours: 5 points)".
    """
    start = f"{one.measure}: {one.items} test items"
    if one.smallest is None:
        return f"{start} (your margin: {margin(one)})"
    enough = "enough" if one.smallest <= one.margin else "only enough"
    return f"{start}; {enough} to decide a margin of {points(one.smallest)} (yours: {margin(one)})"


def table(found: Sequence[Decidable]) -> Table:
    """Table of margins, with the deciding step where there are several."""
    several = len({one.where for one in found}) > 1
    shown = Table(title="what the test items can decide")
    for name in (*(["step"] if several else []), "measure", "test items", "your margin", "smallest decidable", ""):
        shown.add_column(name, justify="left" if name in {"step", "measure", ""} else "right")
    for one in found:
        step = [one.where.removeprefix("steps.")] if several else []
        smallest = "known after the run" if one.smallest is None else points(one.smallest)
        state = "" if one.smallest is None else "enough" if one.smallest <= one.margin else "too few"
        shown.add_row(*step, one.measure, str(one.items), margin(one), smallest, state)
    return shown


def margin(one: Decidable) -> str:
    """Format the recipe's margin: points for shares, else the measure's own unit."""
    if one.relative:
        return f"{100 * one.margin:.3g} % of the baseline"
    return f"{100 * one.margin:.3g} points" if one.items.binary else f"{one.margin:.3g}"


def points(share: float) -> str:
    """Format a share as percentage points, to a tenth."""
    return f"{round(100 * share, 1):g} points"
