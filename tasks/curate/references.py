"""References of rows to articles, and the figures of a corpus of the user's rows."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.shared.errors import DataError
from tasks.shared.formats.articles import Article, read_articles
from tasks.shared.paths import user_path
from tasks.shared.technique import Metrics


def read_article_file(path: str) -> dict[str, Article]:
    """Read the articles of a setting, by id; none for an empty one.  Raises DataError."""
    return read_articles(user_path(path)) if path else {}


def check_articles(files: Iterable[Path], articles: Mapping[str, Article]) -> None:
    """Raise DataError if rows refer to articles that are missing.

    Without articles, nothing is checked.
    """
    if not articles:
        return
    named: set[str] = set()
    for file in files:
        with file.open("rb") as stream:
            named |= {evidence for line in stream if (evidence := json.loads(line)["evidence"])}
    if missing := sorted(named - set(articles)):
        raise DataError(
            "articles", f"{len(missing)} articles that rows refer to are missing: {', '.join(missing[:5])}",
            "every article that a row refers to", "add them to the articles file, or clear the rows' `evidence`",
        )  # fmt: skip


def corpus_metrics(sizes: Mapping[str, int], overlap: Mapping[str, Any]) -> Metrics:
    """Figures of a corpus for tables.

    Rows by split, similarity of test to training, rows dropped or moved.
    """
    figures: Metrics = dict(sizes)
    return figures | {
        "overlap_max": round(overlap["max"], 3),
        "overlap_median": round(overlap["median"], 3),
        "test_rows_with_copies": overlap["test_rows_with_copies"],
        "near_copies_dropped": overlap["dropped"],
    }
