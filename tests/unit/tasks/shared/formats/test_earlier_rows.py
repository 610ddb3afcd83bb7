"""A corpus of the earlier schema, without tasks.json, is read and graded as the support bot's that it was."""

import json
import logging
from pathlib import Path

import pytest

from tasks.shared.errors import DataError
from tasks.shared.formats.earlier_rows import EARLIER_TASK
from tasks.shared.formats.rows import read_rows
from tasks.shared.formats.tasks import read_tasks
from tasks.shared.grading.answer import read_answer
from tasks.shared.grading.grade import grade_key

ROW = {
    "id": "a", "kind": "faq", "intent": "returns", "group": "g", "accept": [["45 days"]], "article": "a1", "reasoning": "It is in a1.",
    "messages": [{"role": "user", "content": "How long?"}, {"role": "assistant", "content": "returns\nWithin 45 days."}],
}  # fmt: skip


def test_rows_of_an_earlier_corpus_keep_their_label_line_and_facts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps(ROW) + "\n")
    with caplog.at_level(logging.INFO):
        (row,) = read_rows(tmp_path / "test.jsonl")
    assert "1 rows in the earlier schema" in caplog.text
    assert (row.label, row.facts, row.evidence, row.reasoning) == ("returns", (("45 days",),), "a1", "It is in a1.")
    task = read_tasks(tmp_path, [row.task])[EARLIER_TASK]
    assert grade_key(row.key, read_answer(row.answer, task), task) == 1.0
    assert grade_key(row.key, read_answer("Within 45 days.", task), task) == 0.0


def test_a_damaged_description_of_tasks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text('{"chat": {"type": "poem"}}')
    with pytest.raises(DataError, match=r"tasks\.json"):
        read_tasks(tmp_path)
