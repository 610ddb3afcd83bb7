"""A user's own files: full rows and plain chats are taken, everything unsound is named with its line."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.curate.jsonl import Chat, Jsonl, fill_in
from tasks.curate.support import Support
from tasks.shared.errors import DataError, ErrorList
from tasks.shared.formats.rows import read_rows
from tasks.shared.technique import Inputs, StepRun
from tests.settings_case import Case, Change


def chat(question: str, answer: str, **more) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    content = {
        "train": [
            chat("How long do I have to return it?", "return\nYou have 45 days."),
            chat("May I sue you?", "legal\nI can't help with that."),
        ],
        "calibration": [chat("Where is my parcel?", "It comes tomorrow.")],
        "test": [chat("what's the refund period", "You have 45 days.", intent="return")],
    }
    for split, rows in content.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {split: str(tmp_path / f"{split}.jsonl") for split in content}


def call(out: Path, **settings):
    out.mkdir()
    return Jsonl(**settings)(Inputs({}), out, StepRun("corpus", 0, out))


def test_plain_chats_are_filled_in(files, tmp_path: Path) -> None:
    metrics = call(tmp_path / "out", **files)
    assert (metrics["train"], metrics["calibration"], metrics["test"]) == (2, 1, 1)
    first, second = read_rows(tmp_path / "out" / "train.jsonl")
    assert (first.id, first.intent, first.kind, first.answer) == (
        "train-00001",
        "return",
        "faq",
        "return\nYou have 45 days.",
    )
    assert (second.intent, second.kind, second.group) == ("legal", "refuse", "may i sue you?")
    assert read_rows(tmp_path / "out" / "calibration.jsonl")[0].answer == "support\nIt comes tomorrow."
    assert read_rows(tmp_path / "out" / "test.jsonl")[0].answer == "return\nYou have 45 days."
    assert json.loads((tmp_path / "out" / "card.json").read_text())["overlap"]["max"] < 0.5
    assert (tmp_path / "out" / "articles.jsonl").read_text() == ""


def test_reasoning_in_an_answer_goes_into_its_own_field() -> None:
    told = Chat.model_validate(chat("Still cold?", "<think>\nIt was unplugged.\n</think>\nheat\nHold the button."))
    row = fill_in(told, "train-1", "support")
    assert (row.reasoning, row.intent, row.answer) == ("It was unplugged.", "heat", "heat\nHold the button.")
    with pytest.raises(ValidationError, match="holds only reasoning"):
        fill_in(Chat.model_validate(chat("Still cold?", "<think>\nIt was")), "train-1", "support")


def test_the_support_corpus_reads_back_unchanged(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    Support(train_size=60, calibration_size=60, test_size=60)(Inputs({}), corpus, StepRun("corpus", 0, corpus))
    names = ("train", "calibration", "test", "articles")
    call(tmp_path / "out", **{name: str(corpus / f"{name}.jsonl") for name in names})
    for name in names:
        assert (tmp_path / "out" / f"{name}.jsonl").read_bytes() == (corpus / f"{name}.jsonl").read_bytes()


def test_every_bad_line_of_every_file_is_listed(files, tmp_path: Path) -> None:
    lines = [
        b'{"messages": []}',
        b"{broken",
        b"\xff\xfe",
        b'{"id": "x", "messages": []}',
        b"",
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}).encode(),
    ]
    Path(files["train"]).write_bytes(b"\n".join(lines))
    Path(files["test"]).write_text("", encoding="utf-8")
    with pytest.raises(ErrorList) as caught:
        call(tmp_path / "out", **files)
    text = str(caught.value)
    assert "6 bad lines" in text and all(f"line {number}:" in text for number in range(1, 7))
    assert "not UTF-8" in text and "take turns" in text and "test.jsonl: no rows" in text
    assert not list((tmp_path / "out").iterdir())


def test_missing_paths(files, tmp_path: Path) -> None:
    with pytest.raises(ErrorList, match="no file given"):
        call(tmp_path / "a")
    with pytest.raises(DataError, match="no such file"):
        call(tmp_path / "b", **{**files, "test": str(tmp_path / "nowhere.jsonl")})


def test_a_copy_in_the_test_is_refused(files, tmp_path: Path) -> None:
    row = chat("How long do I have to return itt?", "return\nYou have 45 days.")
    Path(files["test"]).write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(DataError, match="copy a training one"):
        call(tmp_path / "out", **files)


def test_unknown_articles_and_repeated_ids(files, tmp_path: Path) -> None:
    row = {
        "id": "one",
        "kind": "faq",
        "intent": "return",
        "article": "lost",
        "group": "g",
        **chat("Is it late?", "return\nYes, it is."),
    }
    Path(files["train"]).write_text(json.dumps(row) + "\n" + json.dumps(row), encoding="utf-8")
    articles = tmp_path / "articles.jsonl"
    articles.write_text(json.dumps({"id": "known", "title": "T", "intent": "return", "text": "t"}), encoding="utf-8")
    with pytest.raises(ErrorList, match=r"(?s)missing: lost.*several rows: one"):
        call(tmp_path / "out", **files, articles=str(articles))


CHANGES = {
    "train": Change(lambda case: str(case.folder / "other_train.jsonl")),
    "calibration": Change(lambda case: str(case.folder / "other_calibration.jsonl")),
    "test": Change(lambda case: str(case.folder / "other_test.jsonl")),
    "articles": Change(lambda case: str(case.folder / "articles.jsonl")),
    "intent": Change("delivery"),
    "max_similarity": Change(0.6),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    texts = {"train": "Where do I return it?", "calibration": "Is there a parcel?", "test": "Do you ship on Sundays?"}
    for split, text in texts.items():
        for prefix, answer in (("", "We do."), ("other_", "We do not.")):
            row = json.dumps(chat(text, answer))
            (folder / f"{prefix}{split}.jsonl").write_text(row + "\n", encoding="utf-8")
    article = {"id": "known", "title": "T", "intent": "return", "text": "t"}
    (folder / "articles.jsonl").write_text(json.dumps(article), encoding="utf-8")
    yield Case(folder, Inputs({}), {split: str(folder / f"{split}.jsonl") for split in texts})
