"""Test rows for evaluation, checked for leaks from training and tagged for slices."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tasks.evaluate.grading.measures import TestItem
from tasks.shared.errors import DataError
from tasks.shared.formats.articles import question_of
from tasks.shared.formats.rows import Row, read_rows, spread
from tasks.shared.formats.targets import Labels
from tasks.shared.formats.tasks import Task, read_tasks
from tasks.shared.items import RowSample

SHOWN = 5


@dataclass(frozen=True)
class TestSplit:
    """The test split of a corpus.

    tasks: by name, with all labels that their rows have.  tags: slice tags by row id.
    """

    __test__ = False
    rows: Sequence[Row]
    tasks: Mapping[str, Task]
    tags: Mapping[str, dict[str, str]]

    def items(self, rows: Sequence[Row]) -> list[TestItem]:
        """Return rows of this split with their tasks."""
        declining = {row.task for row in self.rows if row.declines}
        return [TestItem(row, self.tasks[row.task], row.task in declining) for row in rows]


def read_test_split(corpus: Path) -> TestSplit:
    """Return the test rows with their tasks and tags.

    Raises DataError if the split is empty, for duplicate ids, and for rows whose id or phrasing group is also in another split.
    """
    rows = read_test_rows(corpus)
    files = [corpus / f"{split}.jsonl" for split in ("train", "calibration")]
    train, *more = (read_rows(file) if file.is_file() else [] for file in files)
    tasks = read_tasks(corpus, {row.task for row in rows})
    known = [*train, *(row for found in more for row in found), *rows]
    return TestSplit(
        rows, {name: with_labels(task, name, known) for name, task in tasks.items()}, tag_rows(rows, train)
    )


def read_test_items(corpus: Path, limit: int) -> list[TestItem]:
    """Return the test rows that a step with this limit uses, with their tasks.

    A quick look, without checks of the splits and without labels.
    """
    rows = read_rows(corpus / "test.jsonl")
    return TestSplit(rows, read_tasks(corpus, {row.task for row in rows}), {}).items(spread(rows, limit))


def sample_items(sample: RowSample) -> list[TestItem]:
    """Return rows of a corpus that does not exist yet, with their tasks and without labels."""
    return TestSplit(sample.rows, sample.tasks, {}).items(sample.rows)


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


def with_labels(task: Task, name: str, rows: Iterable[Row]) -> Task:
    """Return the task with all its labels: those that it lists, then others of its rows, sorted."""
    found: set[str] = set()
    for row in rows:
        if row.task == name:
            found.update([row.label] if row.label else [])
            found.update(label for target in row.key if isinstance(target, Labels) for label in target.labels)
    return task.model_copy(update={"labels": (*task.labels, *sorted(found - set(task.labels)))})


def last_question(row: Row) -> str:
    """Return the user's last turn before the answer, without an article; empty if there is none."""
    asked = [turn["content"] for turn in row.prompt if turn["role"] == "user"]
    return question_of(asked[-1]) if asked else ""


def tag_rows(rows: Sequence[Row], train: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Return slice tags by row id: those of the rows, and task, frequency and length.

    task: if there are several.
    frequency: for rows with a label, "tail" if it has fewer training rows than the median label (so at most half of the labels are
    tail, and none if all are equally frequent; a label without training rows counts 0), else "head".
    length: "long" if the last question has more words than the median question of `rows` (the whole split), else "short".
    """
    trained = Counter(row.label for row in train)
    labels = {row.label for row in (*rows, *train) if row.label}
    usual = median(trained[label] for label in labels) if labels else 0
    words = {row.id: len(last_question(row).split()) for row in rows}
    typical = median(words.values())
    several = len({row.task for row in rows}) > 1
    return {
        row.id: {
            **row.tags, **({"task": row.task} if several else {}),
            **({"frequency": "tail" if trained[row.label] < usual else "head"} if row.label else {}),
            "length": "long" if words[row.id] > typical else "short",
        }
        for row in rows
    }  # fmt: skip
