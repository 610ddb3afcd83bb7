"""The wall between test and training: near-copies found, counted and kept apart."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tasks.curate.splitting.settings import SplitSettings
from tasks.shared.errors import DataError
from tasks.shared.formats.articles import question_of
from tasks.shared.formats.rows import SPLITS, Split
from tasks.shared.text.affixes import Affixes, ends_of, find_affixes
from tasks.shared.text.near_copies import is_copy
from tasks.shared.text.overlap import Overlap, TextIndex, overlap_of

SAMPLE = 5000
"""Training texts in which shared beginnings and ends are looked for."""
SHOWN = 5


@dataclass(frozen=True)
class Entry:
    """Id, group and text of a row."""

    id: str
    group: str
    text: str


@dataclass(frozen=True)
class Copy:
    """A row of another split that copies a test row, or belongs to its group.

    place: index in its file.  test: index in the test.  similarity: 1.0 for rows of the same group.
    """

    split: Split
    place: int
    id: str
    test: int
    similarity: float


@dataclass
class Wall:
    """Similarities and copies that a comparison found.

    nearest: similarity of each test row to its nearest row elsewhere; kept: the same without the copies.
    copied: indexes of test rows with copies.
    """

    test: list[Entry]
    affixes: Affixes
    nearest: Any
    kept: Any
    copies: list[Copy] = field(default_factory=list)

    @property
    def copied(self) -> set[int]:
        """Indexes of test rows that have copies elsewhere."""
        return {copy.test for copy in self.copies}


def entries(file: Path) -> Iterator[Entry]:
    """Yield what the wall compares of each row of a rows file."""
    with file.open("rb") as stream:
        for line in stream:
            row = json.loads(line)
            said = [question_of(message["content"]) for message in row["messages"] if message["role"] == "user"]
            yield Entry(row["id"], row["group"], "\n".join(said))


def build_wall(files: dict[Split, Path], limit: float) -> Wall:
    """Compare every row of train and calibration with all test rows.

    files: by split; train and calibration are read one row at a time.
    limit: similarity above which long texts are copies (`tasks/shared/text/near_copies.py`).
    """
    import numpy as np

    test = list(entries(files["test"]))
    affixes = find_affixes([*(ends_of(entry.text) for entry in test), *_sample(files["train"])])
    bare = [affixes.cut(entry.text) for entry in test]
    index = TextIndex(bare)
    places = {text: place for place, text in enumerate(index.texts)}
    of_text = np.array([places[text] for text in bare])
    groups: dict[str, list[int]] = {}
    for place, entry in enumerate(test):
        groups.setdefault(entry.group, []).append(place)
    wall = Wall(test, affixes, np.zeros(len(test)), np.zeros(len(test)))
    for split in ("train", "calibration"):
        for place, entry in enumerate(entries(files[split])):
            text = affixes.cut(entry.text)
            found = index.similarities(text)[of_text] if text else np.zeros(len(test))
            np.maximum(wall.nearest, found, out=wall.nearest)
            near = {
                int(one): float(found[one])
                for one in np.flatnonzero(found > limit)
                if is_copy(found[one], bare[one], text, limit)
            }
            near |= dict.fromkeys(groups.get(entry.group, ()), 1.0)
            if near:
                wall.copies += [Copy(split, place, entry.id, one, value) for one, value in near.items()]
            else:
                np.maximum(wall.kept, found, out=wall.kept)
    return wall


def _sample(file: Path) -> list[str]:
    """Texts of a file, every n-th of a large one."""
    size = file.stat().st_size
    step = 1
    found: list[str] = []
    for place, entry in enumerate(entries(file)):
        if place == 200 and size:
            step = max(1, int(size / 300 / SAMPLE))
        if place % step == 0:
            found.append(ends_of(entry.text))
        if len(found) == SAMPLE:
            break
    return found


@dataclass(frozen=True)
class Decision:
    """Rows to drop by split, test rows to move to train, and figures for the card."""

    dropped: dict[Split, set[int]]
    moved: set[int]
    overlap: dict[str, Any]


def decide(wall: Wall, settings: SplitSettings) -> Decision:
    """Apply `on_overlap`.

    Raises DataError for on_overlap=stop with copies, or if nothing would remain.
    """
    before = overlap_of(settings.max_similarity, wall.nearest)
    dropped: dict[Split, set[int]] = {split: set() for split in SPLITS}
    moved: set[int] = set()
    nearest, keep = wall.nearest, set(range(len(wall.test)))
    if wall.copies and settings.on_overlap == "stop":
        raise _refused(wall, settings.max_similarity)
    if settings.on_overlap == "drop_train":
        for copy in wall.copies:
            dropped[copy.split].add(copy.place)
        nearest = wall.kept
    elif wall.copies:
        gone = wall.copied if settings.on_overlap == "drop_test" else _with_neighbors(wall, settings.max_similarity)
        keep -= gone
        (dropped["test"] if settings.on_overlap == "drop_test" else moved).update(gone)
        if not keep:
            got = f"all {len(wall.test)} test rows are copies of other splits' rows"
            raise DataError(
                "test split", got, "at least one that is not", "on_overlap=drop_train, or a higher max_similarity"
            )
    after = overlap_of(settings.max_similarity, [float(nearest[place]) for place in keep])
    return Decision(dropped, moved, _figures(wall, before, after, settings, dropped, moved))


def _with_neighbors(wall: Wall, limit: float) -> set[int]:
    """Test rows with copies in train, and those linked with one of them."""
    gone = set(wall.copied)
    linked = linked_rows(wall, limit)
    roots = {linked(place) for place in gone}
    return {place for place in range(len(wall.test)) if linked(place) in roots}


def linked_rows(wall: Wall, limit: float) -> Callable[[int], int]:
    """Return a function to the first test row linked with one, by near-copies or groups."""
    import numpy as np

    parent = list(range(len(wall.test)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    def join(one: int, other: int) -> None:
        first, second = sorted((root(one), root(other)))
        parent[second] = first

    seen: dict[str, int] = {}
    same: dict[str, int] = {}
    bare = [wall.affixes.cut(entry.text) for entry in wall.test]
    for place, entry in enumerate(wall.test):
        join(place, seen.setdefault(entry.group, place))
        if bare[place].strip():
            join(place, same.setdefault(bare[place], place))
    index = TextIndex(same)
    for text, place in same.items():
        found = index.similarities(text)
        for other in np.flatnonzero(found > limit):
            near = index.texts[other]
            if near != text and is_copy(float(found[other]), text, near, limit):
                join(place, same[near])
    return root


def _refused(wall: Wall, limit: float) -> DataError:
    worst = sorted(wall.copies, key=lambda copy: -copy.similarity)[:SHOWN]
    shown = "\n    ".join(
        f"{wall.test[copy.test].id} ({copy.similarity:.2f} to {copy.split} {copy.id}): {wall.test[copy.test].text[:80]!r}"
        for copy in worst
    )
    got = f"{len(wall.copied)} of {len(wall.test)} conversations copy a row of another split\n    {shown}"
    wanted = f"similarity of at most {limit} (up to 0.75 for short texts), and groups on one side"
    return DataError(
        "test split",
        got,
        wanted,
        "on_overlap=drop_train (or drop_test, move) removes them; max_similarity sets the limit",
    )


def _figures(
    wall: Wall,
    before: Overlap,
    after: Overlap,
    settings: SplitSettings,
    dropped: dict[Split, set[int]],
    moved: set[int],
) -> dict[str, Any]:
    found = {
        **asdict(after),
        "before": {name: round(value, 4) for name, value in asdict(before).items() if name != "limit"},
        "test_rows_with_copies": len(wall.copied),
        "share_with_copies": round(len(wall.copied) / len(wall.test), 4),
        "on_overlap": settings.on_overlap,
        "dropped": sum(map(len, dropped.values())),
        "dropped_by_split": {split: len(places) for split, places in dropped.items()},
        "moved": len(moved),
        "shared_beginnings": list(wall.affixes.before)[:SHOWN],
        "shared_ends": list(wall.affixes.after)[:SHOWN],
    }
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}
