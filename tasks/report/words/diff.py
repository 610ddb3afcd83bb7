"""Word-level differences between two answers."""

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import groupby
from typing import NamedTuple

LONGEST = 4000
"""Most characters of two answers together; longer ones are not compared, as that takes quadratic time."""


class Run(NamedTuple):
    """A run of text.  changed: True if the other answer lacks it."""

    text: str
    changed: bool


def word_runs(before: str, after: str) -> tuple[list[Run], list[Run]]:
    """Split both texts into runs; joined, each list is its text again."""
    if len(before) + len(after) > LONGEST:
        return [Run(before, False)], [Run(after, False)]
    old, new = re.findall(r"\s+|\w+|[^\w\s]", before), re.findall(r"\s+|\w+|[^\w\s]", after)
    blocks = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return (
        list(join_runs([Run("".join(old[a:b]), tag != "equal") for tag, a, b, _, _ in blocks])),
        list(join_runs([Run("".join(new[a:b]), tag != "equal") for tag, _, _, a, b in blocks])),
    )


def join_runs(runs: Sequence[Run]) -> Iterator[Run]:
    """Merge neighboring runs of the same kind; a space between two changes counts as changed."""
    full = [run for run in runs if run.text]
    counted = [
        Run(
            run.text,
            run.changed
            or (0 < i < len(full) - 1 and not run.text.strip() and full[i - 1].changed and full[i + 1].changed),
        )
        for i, run in enumerate(full)
    ]
    for changed, group in groupby(counted, key=lambda run: run.changed):
        yield Run("".join(run.text for run in group), changed)
