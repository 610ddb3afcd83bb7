"""Rows that another step has read become a corpus."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.curate.jsonl import Jsonl
from tasks.curate.read import Read
from tasks.curate.split import Split
from tasks.shared.formats.rows import SPLITS, read_rows
from tasks.shared.formats.tasks import read_tasks
from tasks.shared.technique import Artifact, Inputs, Kind, StepRun
from tests.chat_files import chat, question, write
from tests.settings_case import Case, Change


def rows_of(folder: Path, *rows: dict, **settings: object) -> Inputs:
    out = folder / "raw"
    out.mkdir()
    Read(path=write(folder / "rows.jsonl", *rows), **settings)(Inputs({}), out, StepRun("raw", 0, out))
    return Inputs({"rows": (Artifact("raw", Kind.ROWS, out),)})


def short(out: Path, **settings: object) -> None:
    out.mkdir()
    Jsonl(**settings)(Inputs({}), out, StepRun("corpus", 0, out))


def test_reading_and_splitting_are_the_short_way_in_two_steps(tmp_path: Path) -> None:
    rows = [chat(question(number), f"l{number % 3}") for number in range(90)] + [chat(question(3), "l0")]
    inputs, out = rows_of(tmp_path, *rows, task={"type": "classification"}), tmp_path / "out"
    out.mkdir()
    metrics = Split()(inputs, out, StepRun("corpus", 0, out))
    assert metrics["train"] + metrics["calibration"] + metrics["test"] == 91 - metrics["near_copies_dropped"]
    short(tmp_path / "short", path=str(tmp_path / "rows.jsonl"), task={"type": "classification"})
    for split in SPLITS:
        assert (out / f"{split}.jsonl").read_bytes() == (tmp_path / "short" / f"{split}.jsonl").read_bytes()
    assert read_tasks(out) == read_tasks(tmp_path / "short")
    card = json.loads((out / "card.json").read_text("utf-8"))
    assert card["reading"]["formats"] == {"OpenAI chat": 91} and card["labels"] == ["l0", "l1", "l2"]


def test_near_copies_within_the_test_are_one_group(tmp_path: Path) -> None:
    asked = "Could you please tell me how many days I have got to return the blue kettle that I bought from your shop in {}?"
    test = write(
        tmp_path / "test.jsonl", *[chat(asked.format(month), "45") for month in ("March", "April")], chat("Why?", "So.")
    )
    train = write(tmp_path / "train.jsonl", *[chat(question(number), "x") for number in range(20)])
    short(tmp_path / "out", train=train, test=test)
    groups = [row.group for row in read_rows(tmp_path / "out" / "test.jsonl")]
    assert groups[0] == groups[1] != groups[2]


CHANGES = {
    "test_share": Change(0.5),
    "calibration_share": Change(0.5),
    "max_test": Change(1, given={"test_share": 0.5}),
    "max_calibration": Change(1, given={"calibration_share": 0.5}),
    "max_similarity": Change(0.6),
    "on_overlap": Change("drop_test", given={"test_share": 0.5}),
    "articles": Change(lambda case: str(case.folder / "articles.jsonl")),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    write(folder / "articles.jsonl", {"id": "known", "title": "T", "intent": "return", "text": "t"})
    rows = [chat(question(number), "x", n=number) for number in range(40)]
    copies = [chat(question(number) + "!!", "y", n=number) for number in range(16)]
    yield Case(folder, rows_of(folder, *rows, *copies))
