"""Assignment of rows to splits by a digest of their group: added rows move no others."""

import hashlib
from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tasks.shared.errors import DataError
from tasks.shared.formats.rows import SPLITS, Split

if TYPE_CHECKING:
    import numpy as np

FEWEST = 5
"""Groups of a label from which one must be in the test."""
TRAIN = SPLITS.index("train")


class Groups:
    """Groups and labels of rows by index: twelve bytes a row.

    seed: another one gives other splits.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.groups = array("Q")
        self.labels = array("i")
        self.names: dict[str, int] = {"": 0}

    def add(self, group: str, label: str) -> None:
        """Add a row."""
        salted = hashlib.blake2b(f"{self.seed}/{group}".encode(), digest_size=8).digest()
        self.groups.append(int.from_bytes(salted, "little"))
        self.labels.append(self.names.setdefault(label, len(self.names)))


def assign(groups: Groups, shares: Mapping[Split, float], most: Mapping[Split, int]) -> "np.ndarray":
    """Return the split of every row, as an index of SPLITS.

    shares: of the splits to take from these rows; the rest is train.  most: largest number of rows of a split.
    A group is in the split that its digest, a number between 0 and 1, falls into.  Then a group whose label would otherwise miss
    from train, or from the test, is moved there.
    Raises DataError if there are too few groups.
    """
    import numpy as np

    names, first, of_row, sizes = np.unique(
        np.array(groups.groups, dtype=np.uint64), return_index=True, return_inverse=True, return_counts=True
    )
    if len(names) <= len(shares):
        raise DataError(
            "split", f"only {len(names)} groups of rows that belong together", f"at least {len(shares) + 1}",
            "give files of your own for test and calibration, or check map.group",
        )  # fmt: skip
    position = names / 2.0**64  # in ascending order
    labels = np.array(groups.labels)[first]
    found = np.full(len(names), TRAIN)
    start = 0.0
    for split, share in shares.items():
        inside = np.flatnonzero((position >= start) & (position < start + share))
        found[inside[np.cumsum(sizes[inside]) <= most[split]]] = SPLITS.index(split)
        start += share
    if len(groups.names) > 1:
        _rescue_labels(labels, found, "test" in shares)
    _fill(found, [TRAIN, *map(SPLITS.index, shares)])
    return found[of_row]


def _rescue_labels(labels: "np.ndarray", found: "np.ndarray", with_test: bool) -> None:
    """Give every label a group in train, and one in the test if it has enough."""
    import numpy as np

    test = SPLITS.index("test")
    order = np.argsort(labels, kind="stable")
    edges = np.flatnonzero(np.diff(labels[order])) + 1
    for places in np.split(order, edges):
        if labels[places[0]] == 0:
            continue
        if not (found[places] == TRAIN).any():
            found[places[-1]] = TRAIN
        if with_test and len(places) >= FEWEST and not (found[places] == test).any():
            found[places[found[places] == TRAIN][0]] = test


def _fill(found: "np.ndarray", splits: list[int]) -> None:
    """Give every split a group, from the split that has most of them."""
    import numpy as np

    for split in splits:
        if not (found == split).any():
            largest = int(np.bincount(found).argmax())
            found[np.flatnonzero(found == largest)[0]] = split
