"""The splits of a corpus, from rows files: missing ones filled, copies of the test kept out."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.curate.reading.preview import rows_in, tokens_in
from tasks.curate.splitting.assign import Groups, assign
from tasks.curate.splitting.settings import SplitSettings
from tasks.curate.splitting.wall import Decision, build_wall, decide, linked_rows
from tasks.shared.errors import DataError
from tasks.shared.forecast import Rows
from tasks.shared.formats.rows import SPLITS, Split

FEW = 20
"""Fewest dropped rows at which a loss of most rows is refused."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """Rows files by split, and what was done to them, for the card."""

    files: dict[Split, Path]
    notes: dict[str, Any]


def fill_splits(given: Mapping[str, Path], folder: Path, settings: SplitSettings, seed: int) -> Parts:
    """Take the splits that are not given from the rows to split, by group and label.

    given: rows files by split, and `path`, the rows to split; without it, they are those of train.  folder: for the new files.
    Raises DataError if there are too few groups.
    """
    missing: list[Split] = [split for split in ("test", "calibration") if split not in given]
    pool = given.get("path", given.get("train"))
    assert pool is not None, "there are rows to split"
    files: dict[Split, Path] = {split: given[split] for split in SPLITS if split in given}
    taken: dict[Split, int] = {}
    if missing:
        files |= _divide(pool, {split: settings.shares[split] for split in missing}, folder, settings, seed, taken)
        rows = " and ".join(f"{taken[split]} for {split}" for split in missing)
        log.info("no file for %s: rows taken from the others: %s", " and ".join(missing), rows)
        pool = files["train"]
    if "path" in given:
        files["train"] = _joined([given["train"], pool], folder / "train.joined.jsonl") if "train" in given else pool
    return Parts(files, {"taken_from_train": taken})


def _divide(
    pool: Path, shares: Mapping[Split, float], folder: Path, settings: SplitSettings, seed: int, taken: dict[Split, int]
) -> dict[Split, Path]:
    groups = Groups(seed)
    with pool.open("rb") as stream:
        for line in stream:
            row = json.loads(line)
            groups.add(row["group"], row_label(row))
    found = assign(groups, shares, settings.most)
    files: dict[Split, Path] = {split: folder / f"{split}.part.jsonl" for split in ("train", *shares)}
    with ExitStack() as stack:
        streams = {SPLITS.index(split): stack.enter_context(file.open("wb")) for split, file in files.items()}
        for line, place in zip(stack.enter_context(pool.open("rb")), found, strict=True):
            streams[int(place)].write(line)
    taken.update({split: int((found == SPLITS.index(split)).sum()) for split in shares})
    return files


def _joined(files: Sequence[Path], target: Path) -> Path:
    with target.open("wb") as written:
        for file in files:
            with file.open("rb") as stream:
                shutil.copyfileobj(stream, written)
    return target


def expected_rows(given: Mapping[str, str], settings: SplitSettings, encoding: str) -> Rows:
    """Return the expected number of rows by split.

    given: paths by name: `path` to be split, or `train`, `calibration`, `test`.
    """
    rows = {name: rows_in(path, encoding) for name, path in given.items()}
    missing: list[Split] = [split for split in ("test", "calibration") if split not in rows]
    taken = settings.expect(rows.get("path" if "path" in rows else "train", 0), missing)
    train = taken["train"] + (rows.get("train", 0) if "path" in rows else 0)
    mean, longest = tokens_in(given.get("path", given.get("train", "")), encoding)
    return Rows(max(1, train), max(1, taken.get("test", rows.get("test", 0))), longest, mean)


def row_label(row: Mapping[str, Any]) -> str:
    """Label of a row as JSON; empty if it has none."""
    return next((str(target["label"]) for target in row["key"] if target["type"] == "label"), "")


def keep_apart(parts: Parts, out: Path, settings: SplitSettings) -> dict[str, Any]:
    """Write the splits without near-copies of the test in the others; return the wall's figures.

    out: their folder.  Near-copies within the test become one group, so that a verdict does not count them as independent.
    Raises DataError if copies are refused, or a split would be empty.
    """
    wall = build_wall(parts.files, settings.max_similarity)
    decision = decide(wall, settings)
    root = linked_rows(wall, settings.max_similarity)
    test_groups = {place: wall.test[root(place)].group for place in range(len(wall.test)) if root(place) != place}
    joined = sum(wall.test[place].group != group for place, group in test_groups.items())
    figures = {**decision.overlap, "test_rows_joined_to_a_group": joined}
    kept = {split: _copy(parts.files[split], out / f"{split}.jsonl", split, decision, test_groups) for split in SPLITS}
    _append_moved(parts.files["test"], out / "train.jsonl", decision.moved)
    kept["train"] += len(decision.moved)
    for split in SPLITS:
        check_loss(split, len(decision.dropped[split]), kept[split])
    if empty := [split for split in SPLITS if not kept[split]]:
        raise DataError(
            f"{' and '.join(empty)} split", "no rows: all were copies of test conversations", "at least one row",
            "on_overlap=drop_test or move, or a higher max_similarity",
        )  # fmt: skip
    _say(figures, len(wall.test))
    return figures


def check_loss(split: Split, dropped: int, kept: int) -> None:
    """Raise DataError if most rows of a split are dropped as copies.

    Such rows usually follow one template and leak nothing.
    """
    if dropped < FEW or dropped <= kept:
        return
    raise DataError(
        f"{split} split",
        f"{dropped} of {dropped + kept} rows are near-copies across the splits",
        "most rows to remain; so many copies usually mean that all questions follow one template",
        "max_similarity=1 keeps rows that differ; map.group keeps related rows in one split; on_overlap names the side to drop",
    )


def _copy(source: Path, target: Path, split: Split, decision: Decision, test_groups: Mapping[int, str]) -> int:
    dropped = decision.dropped[split] | (decision.moved if split == "test" else set())
    kept = 0
    with source.open("rb") as stream, target.open("wb") as written:
        for place, line in enumerate(stream):
            if place in dropped:
                continue
            if split == "test" and place in test_groups:
                row = json.loads(line)
                row["group"] = test_groups[place]
                line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
            written.write(line)
            kept += 1
    return kept


def _append_moved(source: Path, target: Path, moved: set[int]) -> None:
    if moved:
        with source.open("rb") as stream, target.open("ab") as written:
            written.writelines(line for place, line in enumerate(stream) if place in moved)


def _say(figures: Mapping[str, Any], test: int) -> None:
    for words in figures["shared_beginnings"]:
        log.info("shared beginning, not compared: %r", words[:100])
    if figures["test_rows_with_copies"]:
        log.warning(
            "%d of %d test conversations have near-copies or rows of their group in other splits; on_overlap=%s: %d rows dropped, %d moved to train",
            figures["test_rows_with_copies"], test, figures["on_overlap"], figures["dropped"], figures["moved"],
        )  # fmt: skip
    log.info("nearest training text of a test text: similarity %.2f (median), %.2f (95th percentile), %.2f (largest)",
             figures["median"], figures["p95"], figures["max"])  # fmt: skip
