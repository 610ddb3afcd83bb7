"""Distribution of rows over processes: each takes a share of every batch, in the same order."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any, Protocol

from tasks.shared.model.encoding import IGNORED


class Order(Iterable[int], Sized, Protocol):
    """Indices of rows, possibly in another order for each pass."""


class Shares:
    """Batch sampler that takes every `count`-th row of each batch, from the `rank`-th on.

    The last batch may have fewer rows than there are processes.  A process without a row gets the batch's first row as a blank,
    `~index`, since every process has to take part in every backward pass, and accelerate's padding would count rows twice.
    """

    def __init__(self, order: Order, batch: int, rank: int = 0, count: int = 1) -> None:
        self.order, self.batch, self.rank, self.count = order, batch, rank, count

    def __len__(self) -> int:
        """Number of batches in a pass."""
        return -(-len(self.order) // self.batch)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this process's rows of each batch."""
        indices = iter(self.order)
        while rows := list(islice(indices, self.batch)):
            yield rows[self.rank :: self.count] or [~rows[0]]


class Blank(dict[str, Any]):
    """A row that is computed but not counted."""


class Blankable:
    """Rows by index; `~index` is the same row as a `Blank`."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        """Number of rows, without blanks."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Return a row, or its blank for a negative index."""
        return self.rows[index] if index >= 0 else Blank(self.rows[~index])


WITHHELD = "withheld"
"""Key of a blank batch's own labels."""


def collate_share(collate: Callable[[Any], dict[str, Any]], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collate a batch; a blank one has IGNORED labels, so that it adds no counted tokens."""
    batch = collate(rows)
    if isinstance(rows[0], Blank):
        batch[WITHHELD] = batch["labels"]
        batch["labels"] = batch["labels"].new_full(batch["labels"].shape, IGNORED)
    return batch
