"""Test items of a plan: how many each measure will have, found before anything runs.

A step that measures counts them (`CountsItems`), in the corpus if it exists, else as an upper bound from its settings.  A step that
decides says what so many items cannot show (`NeedsItems`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tasks.shared.errors import StillroomError


@dataclass(frozen=True)
class Items:
    """Test items of one measure.

    count: number, or the most that there can be if not `exact`.  binary: every value is 0 or 1.
    groups: of dependent items, such as wordings of one question: what they are worth as independent items; None if there are none.
    """

    count: int
    binary: bool = True
    exact: bool = True
    groups: int | None = None

    @property
    def independent(self) -> int:
        """Number of independent items that decide as well, at least."""
        return self.count if self.groups is None else self.groups

    def __str__(self) -> str:
        """Format the number for tables; "up to" before a bound."""
        worth = "" if self.groups is None else f", worth {self.groups}"
        return f"{self._count}{worth}"

    @property
    def _count(self) -> str:
        return f"{'' if self.exact else 'up to '}{self.count}"

    def in_words(self, unit: str) -> str:
        """Format the number for sentences: "600 items in 132 groups, which count once each,".

        unit: name of the items.
        """
        return f"{self._count} {unit}" + (
            "" if self.groups is None else f" in {self.groups} groups, which count once each,"
        )


def worth_of(groups: Iterable[str]) -> int | None:
    """Return the number of groups; None if none holds several items.

    groups: of every item; empty for an item that stands alone.  A group counts once, and the mean of its items varies no more than one of
    them, so it is worth at least one independent item.
    """
    sizes = Counter(groups)
    alone = sizes.pop("", 0)
    return None if all(size == 1 for size in sizes.values()) else alone + len(sizes)


@dataclass(frozen=True)
class RowSample:
    """Rows that a corpus which does not exist yet will be made of.

    where: file that they are in.  rows, tasks: as in `tasks/shared/formats`, tasks by name.  whole: no other row can be in the corpus.
    """

    where: str
    rows: Sequence[Any]
    tasks: Mapping[str, Any]
    whole: bool


@runtime_checkable
class PreviewsRows(Protocol):
    """A technique that can tell before it runs which rows it will write."""

    def preview_rows(self, source: RowSample | None) -> RowSample | None:
        """Return rows that the test split will be taken from; None if it cannot tell.

        source: rows of the step's input.  Raises StillroomError for files that the step would refuse.
        """
        ...


@dataclass(frozen=True)
class ItemSources:
    """Data that a step measures on.

    corpus: the one that it reads; None before it exists, or if it reads none.
    rows: test rows of the corpus, by forecast.
    items: of the scores that it reads, by measure.
    sample: rows of a corpus that does not exist yet, if they are known.
    """

    corpus: Path | None
    rows: int
    items: Mapping[str, Items]
    sample: RowSample | None = None

    @property
    def all_rows(self) -> RowSample | None:
        """The sample, if it holds every row of the coming corpus."""
        return self.sample if self.sample and self.sample.whole else None

    def at_most(self, limit: int) -> int:
        """Return the number of rows that a step with this limit uses at most; 0 means no limit."""
        return min(limit or self.rows, self.rows)


@dataclass(frozen=True)
class Decidable:
    """Smallest margin that a measure's test items can decide, next to the recipe's.

    where: step that decides.  margin: in the measure's own unit, or a share of the baseline's value if `relative`.
    smallest: None where it depends on values that nobody has measured yet, as for amounts.
    """

    where: str
    measure: str
    items: Items
    margin: float
    relative: bool = False
    smallest: float | None = None


@dataclass(frozen=True)
class ItemFindings:
    """Decisions that the items support.

    decidable: one per margin that has items.  notes: other facts for the plan.
    warnings: decisions that are unlikely.  errors: decisions that are impossible.
    """

    decidable: list[Decidable] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[StillroomError] = field(default_factory=list)


@runtime_checkable
class CountsItems(Protocol):
    """A technique that can count the test items of its measures."""

    def count_items(self, sources: ItemSources) -> Mapping[str, Items]:
        """Return the items by measure.

        Raises StillroomError for a measure that the corpus cannot have.
        """
        ...


@runtime_checkable
class NeedsItems(Protocol):
    """A technique whose decision needs enough test items."""

    def find_shortages(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], items: Mapping[str, Items], complete: bool
    ) -> ItemFindings:
        """Return what these items can decide.

        where: place of the step in the recipe.  inputs: names by port.  complete: no measure is missing from `items`.
        """
        ...
