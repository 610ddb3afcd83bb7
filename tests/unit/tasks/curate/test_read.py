"""Rows of a file, unsplit; what each format becomes stands in reading/test_strange_files.py."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.curate.read import Read
from tasks.shared.errors import ConfigError
from tasks.shared.formats.rows import read_rows
from tasks.shared.formats.tasks import read_tasks
from tasks.shared.technique import Inputs, StepRun
from tests.chat_files import chat, write
from tests.settings_case import Case, Change


def test_rows_tasks_card_and_quarantine(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    file = tmp_path / "intents.csv"
    file.write_text("text;category\nWhere is it?;card arrival\nDeclined!;declined\none;two;three\n", encoding="utf-8")
    metrics = Read(path=str(file))(Inputs({}), out, StepRun("raw", 0, out))
    assert metrics == {"read": 3, "rows": 2, "quarantined": 1}
    assert [row.label for row in read_rows(out / "rows.jsonl")] == ["card arrival", "declined"]
    assert read_tasks(out)["classification"].layout == "alone"
    card = json.loads((out / "card.json").read_text("utf-8"))
    assert card["files"] == {"path": {"intents.csv": "CSV with semicolons in utf-8"}}
    assert card["counts"]["label"] == {"card arrival": 1, "declined": 1} and sum(card["quarantined"].values()) == 1
    with pytest.raises(ConfigError, match="no file given"):
        Read()(Inputs({}), out, StepRun("raw", 0, out))


CHANGES = {
    "path": Change(lambda case: str(case.folder / "other.jsonl")),
    "map": Change({"tags": []}),
    "task": Change({"type": "qa"}),
    "tasks": Change(
        {"en": {"type": "summarization"}}, given={"map": {"task": "lang"}, "tasks": {"en": {"type": "qa"}}}
    ),
    "encoding": Change("cp1252"),
    "max_quarantined": Change(0.0, refused="cannot be read"),
    "max_line_mb": Change(1),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    write(folder / "other.jsonl", chat("a", "b", lang="en"))
    write(folder / "rows.jsonl", chat("a", "x" * 1_200_000, lang="en"))
    with (folder / "rows.jsonl").open("ab") as stream:
        stream.write(json.dumps(chat("Grün?", "ä", lang="en"), ensure_ascii=False).encode() + b"\n{a\n{b\n")
    yield Case(folder, Inputs({}), {"path": str(folder / "rows.jsonl"), "max_quarantined": 0.8})
