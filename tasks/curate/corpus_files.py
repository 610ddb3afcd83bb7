"""The files of a corpus beside its splits, and of rows that are not split yet."""

import json
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.shared.formats.articles import Article, write_articles
from tasks.shared.formats.rows import SPLITS, Row, Split, write_rows
from tasks.shared.formats.tasks import Task, write_tasks

CARD = "card.json"
ROWS_FILE = "rows.jsonl"
TAG_VALUES = 50
"""Most values of a tag that are counted one by one."""
KNOWN_VALUES = 10_000
"""Most values of a tag that are told apart."""


def write_corpus(
    out: Path,
    rows: Mapping[Split, Sequence[Row]],
    articles: Iterable[Article],
    tasks: Mapping[str, Task],
    more: Mapping[str, Any],
) -> None:
    """Write the splits and articles (.jsonl), tasks.json, card.json, corpus.schema.json.

    tasks: by name; those that no row names are left out.  more: entries of card.json beside the counts.
    """
    for split in SPLITS:
        write_rows(out / f"{split}.jsonl", rows[split])
    describe_corpus(out, articles, tasks, more)


def describe_corpus(
    out: Path, articles: Iterable[Article], tasks: Mapping[str, Task], more: Mapping[str, Any]
) -> dict[str, int]:
    """Write the other files of a corpus beside its splits; return the number of rows by split."""
    counts = {split: count_file(out / f"{split}.jsonl") for split in SPLITS}
    write_articles(out / "articles.jsonl", articles)
    used = {name for found in counts.values() for name in found.tasks}
    write_tasks(out, {name: task for name, task in tasks.items() if name in used})
    labels = sorted({label for found in counts.values() for label in found.labels})
    many = {name for found in counts.values() for name in found.tags_with_many_values()}
    described = {split: found.summary(many) for split, found in counts.items()}
    write_json(out / CARD, {"counts": described, "labels": labels, **more})
    write_json(out / "corpus.schema.json", Row.model_json_schema())
    return {split: found.rows for split, found in counts.items()}


def describe_rows(out: Path, tasks: Mapping[str, Task], more: Mapping[str, Any]) -> None:
    """Write tasks.json and card.json beside rows.jsonl."""
    write_tasks(out, tasks)
    counts = count_file(out / ROWS_FILE)
    write_json(out / CARD, {"counts": counts.summary(counts.tags_with_many_values()), **more})


def read_card(folder: Path) -> dict[str, Any]:
    """Read card.json of rows; the counts are left out, since a later step has other rows."""
    content = json.loads((folder / CARD).read_text("utf-8"))
    return {name: value for name, value in content.items() if name != "counts"}


class Counts:
    """Rows and groups, and rows by task, type of target, label and tag."""

    def __init__(self) -> None:
        self.rows = 0
        self.tasks: Counter[str] = Counter()
        self.targets: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.tags: dict[str, Counter[str]] = {}
        self._groups = array("q")

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row as it stands in a file."""
        self.rows += 1
        self.tasks[row["task"]] += 1
        self.targets.update(sorted({target["type"] for target in row["key"]}) or ["none"])
        self.labels.update(target["label"] for target in row["key"] if target["type"] == "label")
        self._groups.append(hash(row["group"]))
        for name, value in row["tags"].items():
            known = self.tags.setdefault(name, Counter())
            if value in known or len(known) < KNOWN_VALUES:
                known[value] += 1

    def tags_with_many_values(self) -> set[str]:
        """Names of tags such as a ticket's number, whose values are not counted one by one."""
        return {name for name, count in self.tags.items() if len(count) > TAG_VALUES}

    def summary(self, many: Collection[str]) -> dict[str, Any]:
        """Counts for card.json.

        many: tags that are reported by the number of their values.
        """
        import numpy as np

        return {
            "rows": self.rows,
            "groups": len(np.unique(np.array(self._groups))),
            "task": dict(sorted(self.tasks.items())),
            "target": dict(sorted(self.targets.items())),
            "label": dict(sorted(self.labels.items())),
            "tags": {name: _values(count, name in many) for name, count in sorted(self.tags.items())},
        }


def count_file(file: Path) -> Counts:
    """Count the rows of a rows file, one at a time."""
    found = Counts()
    with file.open("rb") as stream:
        for line in stream:
            found.add(json.loads(line))
    return found


def _values(count: Counter[str], many: bool) -> dict[str, int] | str:
    if not many:
        return dict(sorted(count.items()))
    return f"{'at least ' if len(count) == KNOWN_VALUES else ''}{len(count)} values"


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file, indented."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
