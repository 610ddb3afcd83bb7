"""Test rows for evaluation, checked for leaks from training and tagged for slices."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from tasks.shared.errors import DataError
from tasks.shared.formats.articles import question_of
from tasks.shared.formats.rows import Row, read_rows

SHOWN = 5


def read_test_rows(corpus: Path) -> list[Row]:
    """Return the rows of the test split.

    Raises DataError if it is empty, for duplicate ids, and for rows whose id or phrasing group is also in another split.
    """
    file = corpus / "test.jsonl"
    rows = read_rows(file)
    counts = Counter(row.id for row in rows)
    twice = sorted(key for key, count in counts.items() if count > 1)
    if twice:
        raise DataError(str(file), f"{len(twice)} duplicate ids: {', '.join(twice[:SHOWN])}", "unique ids")
    for split in ("train", "calibration"):
        other = corpus / f"{split}.jsonl"
        if split == "calibration" and not other.is_file():
            continue
        known = {key for row in read_rows(other) for key in (("id", row.id), ("group", row.group))}
        leaks = [row.id for row in rows if ("id", row.id) in known or ("group", row.group) in known]
        if leaks:
            raise DataError(
                str(file), f"{len(leaks)} rows share their id or phrasing group with {split}.jsonl: {', '.join(leaks[:SHOWN])}",
                "a test split disjoint from training", "build the corpus again, split by phrasing group",
            )  # fmt: skip
    return rows


def read_labels(corpus: Path, rows: Iterable[Row]) -> list[str]:
    """Return the labels to choose from, sorted: those of card.json and of the rows."""
    card = corpus / "card.json"
    listed = json.loads(card.read_text(encoding="utf-8")).get("labels", []) if card.is_file() else []
    return sorted({*map(str, listed), *(row.label for row in rows)})


def last_question(row: Row) -> str:
    """Return the user's last question, without the article in the turn."""
    return question_of(row.messages[-2].content)


def tag_rows(rows: Sequence[Row], train: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Return slice tags by row id: kind, intent, frequency, length, grounded.

    frequency: "tail" if the intent has fewer training rows than the median intent (so at most half of the intents are tail, and none if
    all are equally frequent; an intent without training rows counts 0), else "head".
    length: "long" if the last question has more words than the median question of `rows` (the whole split), else "short".
    """
    trained = Counter(row.label for row in train)
    usual = median(trained[intent] for intent in {row.label for row in (*rows, *train)})
    words = {row.id: len(last_question(row).split()) for row in rows}
    typical = median(words.values())
    return {
        row.id: {
            **row.tags, "frequency": "tail" if trained[row.label] < usual else "head",
            "length": "long" if words[row.id] > typical else "short",
        }
        for row in rows
    }  # fmt: skip
