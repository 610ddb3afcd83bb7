"""Copies among rows: exact and edited ones are dropped, everything else is kept, and nothing is lost uncounted."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.curate.dedup import Dedup
from tasks.curate.read import Read
from tasks.shared.formats.rows import Row, read_rows
from tasks.shared.technique import Artifact, Inputs, Kind, Metrics, StepRun
from tests.chat_files import chat, write
from tests.settings_case import Case, Change


def rows_of(folder: Path, *rows: dict) -> Inputs:
    out = folder / "raw"
    out.mkdir(parents=True)
    Read(path=write(folder / "rows.jsonl", *rows))(Inputs({}), out, StepRun("raw", 0, out))
    return Inputs({"rows": (Artifact("raw", Kind.ROWS, out),)})


def dedup(folder: Path, *rows: dict, **settings: object) -> tuple[list[Row], list[dict], Metrics]:
    out = folder / "out"
    inputs = rows_of(folder, *rows)
    out.mkdir()
    metrics = Dedup(**settings)(inputs, out, StepRun("unique", 0, out))
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text("utf-8").splitlines()]
    return read_rows(out / "rows.jsonl"), dropped, metrics


def letters(draw: random.Random, words: int = 30) -> str:
    return " ".join("".join(draw.choices("abcdefghijkl", k=5)) for _ in range(words))


def edited(text: str, edits: int, draw: random.Random) -> str:
    found = list(text)
    for _ in range(edits):
        found[draw.randrange(len(found))] = draw.choice("xyz")
    return "".join(found)


def test_planted_copies_are_dropped_and_named(tmp_path: Path) -> None:
    draw = random.Random(2)
    texts = [letters(draw) for _ in range(80)]
    copies = [edited(texts[number], number % 3, draw) for number in range(30)]
    rows, dropped, metrics = dedup(tmp_path, *(chat(text, "Fine.") for text in texts + copies))
    assert [row.messages[0].content for row in rows] == texts
    assert [(entry["id"], entry["copy_of"]) for entry in dropped] == [
        (f"row-{81 + number:05d}", f"row-{1 + number:05d}") for number in range(30)
    ]
    assert metrics == {"read": 110, "rows": 80, "exact": 10, "near": 20}
    card = json.loads((tmp_path / "out" / "card.json").read_text("utf-8"))
    assert card["dedup"] == metrics and card["counts"]["rows"] == 80 and card["formats"]


def test_what_counts_as_a_copy(tmp_path: Path) -> None:
    rows = [
        chat("Where is my parcel?", "On the way."),
        chat("where is my parcel", "On the way!"),
        chat("Where is my parcel?", "We cannot find it, sorry."),
    ]
    assert len(dedup(tmp_path / "a", *rows)[0]) == 2
    assert len(dedup(tmp_path / "b", *rows, compare="question")[0]) == 1
    draw = random.Random(1)
    text = letters(draw)
    pair = [chat(text, "a"), chat(edited(text, 2, draw), "a"), chat(text.upper(), "a")]
    assert len(dedup(tmp_path / "c", *pair, threshold=1.0)[0]) == 2


CHANGES = {"threshold": Change(1.0), "compare": Change("question")}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    draw = random.Random(1)
    text = letters(draw)
    yield Case(folder, rows_of(folder, chat(text, "a"), chat(edited(text, 2, draw), "a"), chat(text, letters(draw))))
