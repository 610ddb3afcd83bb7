"""The files of a corpus: splits, articles, tasks, card and schema."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.shared.formats.articles import Article, write_articles
from tasks.shared.formats.rows import SPLITS, Row, Split, write_rows
from tasks.shared.formats.tasks import Task, write_tasks


def write_corpus(
    out: Path,
    rows: Mapping[Split, Sequence[Row]],
    articles: Iterable[Article],
    tasks: Mapping[str, Task],
    more: Mapping[str, Any],
) -> None:
    """Write train, calibration, test and articles (.jsonl), tasks.json, card.json, corpus.schema.json.

    tasks: by name; those that no row names are left out.  more: entries of card.json beside the counts.
    """
    for split in SPLITS:
        write_rows(out / f"{split}.jsonl", rows[split])
    write_articles(out / "articles.jsonl", articles)
    used = {row.task for found in rows.values() for row in found}
    write_tasks(out, {name: task for name, task in tasks.items() if name in used})
    counts = {split: count_rows(found) for split, found in rows.items()}
    labels = sorted({row.label for found in rows.values() for row in found if row.label})
    _write(out / "card.json", {"counts": counts, "labels": labels, **more})
    _write(out / "corpus.schema.json", Row.model_json_schema())


def count_rows(rows: Sequence[Row]) -> dict[str, Any]:
    """Count rows and groups, and rows by task, type of target, label and tag.

    A tag with more than TAG_VALUES values, such as a customer's number, is reported by the number of its values.
    """
    tags: dict[str, Counter[str]] = {}
    for row in rows:
        for name, value in row.tags.items():
            tags.setdefault(name, Counter())[value] += 1
    return {
        "rows": len(rows),
        "groups": len({row.group for row in rows}),
        "task": _sorted(row.task for row in rows),
        "target": _sorted(
            kind for row in rows for kind in sorted({str(target.type) for target in row.key}) or ["none"]
        ),
        "label": _sorted(row.label for row in rows if row.label),
        "tags": {name: _values(count) for name, count in sorted(tags.items())},
    }


TAG_VALUES = 50
"""Most values of a tag that are counted one by one."""


def _values(count: Counter[str]) -> dict[str, int] | str:
    return dict(sorted(count.items())) if len(count) <= TAG_VALUES else f"{len(count)} values"


def _sorted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
