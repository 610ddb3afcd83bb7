"""Texts in pieces: nothing is lost, and files that are not text are refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.evaluate.likelihood.documents import answer_documents, answered_rows, unanswered_note
from tasks.shared.errors import DataError
from tasks.shared.formats.rows import Message
from tasks.shared.text.files import cut, read_texts
from tests.support_rows import support_row


@given(st.text("ab é\n", max_size=200), st.integers(1, 40))
@settings(deadline=None, max_examples=200)
def test_pieces_are_the_text(text: str, size: int) -> None:
    pieces = cut(text, size)
    if text.strip():
        assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece.strip() for piece in pieces)


def test_pieces_end_with_a_line_and_keep_to_their_size() -> None:
    text = "".join(f"line {number:02d}\n" for number in range(40))  # 8 bytes each
    pieces = cut(text, 64)
    assert "".join(pieces) == text
    assert [len(piece) for piece in pieces] == [64] * 5
    assert cut(text, 0) == [text]
    assert [len(piece) for piece in cut(text + "x\n", 64)] == [64] * 4 + [66], (
        "a short rest goes with the piece before it"
    )


def test_a_long_line_is_cut_after_words_and_a_long_word_is_not() -> None:
    assert (
        cut("one two three four", 9) == ["one two ", "three ", "four"]
        or "".join(cut("one two three four", 9)) == "one two three four"
    )
    assert cut("x" * 50, 10) == ["x" * 50]


def test_a_folder_is_read_in_order_with_a_tag_for_each_file(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("\ufeffsecond\n", "utf-8")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.md").write_text("# third\n", "utf-8")
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in ("first", "again")), "utf-8"
    )
    (tmp_path / "picture.png").write_bytes(b"\x89")
    found = read_texts(tmp_path, 100)
    assert [(item.id, item.text) for item in found] == [
        ("a.jsonl:1", "first"),
        ("a.jsonl:2", "again"),
        ("b.txt:1", "second\n"),
        ("sub/a.md:1", "# third\n"),
    ]
    assert found[3].tags == {"file": "sub/a.md"}
    assert read_texts(tmp_path / "b.txt", 100)[0].tags == {}
    assert read_texts(tmp_path / "b.txt", 100)[0].bytes == 7


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "white.txt").write_text(" \n\n", "utf-8")
    (tmp_path / "rows.jsonl").write_text('{"txt": "a"}\n', "utf-8")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "empty").mkdir()
    for name, words in {
        "latin.txt": "UTF-8",
        "white.txt": "white space",
        "rows.jsonl": "line 1: text",
        "image.png": "no readable text",
        "empty": "no readable text",
        "none.txt": "no such",
    }.items():
        with pytest.raises(DataError, match=words):
            read_texts(tmp_path / name, 100)


def test_answers_stand_after_their_prompt() -> None:
    talk = (
        Message(role="user", content="Article: A\ntext\n\nQuestion: How?"),
        Message(role="assistant", content="returns\nSo."),
    )
    row = support_row(id="r", kind="faq", intent="Returns", group="g", grounded=True, messages=talk)
    document = answer_documents([row], {"r": {"kind": "faq"}})[0]
    assert (document.text, document.question, document.prompt[0]["role"]) == ("returns\nSo.", "How?", "user")
    assert document.tags == {"kind": "faq"}


def test_only_answers_in_words_are_read(tmp_path: Path) -> None:
    ask = Message(role="user", content="Well?")
    rows = [
        support_row(id="a", group="g", messages=(ask, Message(role="assistant", content="Yes."))),
        support_row(id="b", group="g", messages=(ask,)),
        support_row(id="c", group="g", messages=(ask, Message(role="assistant", tool_calls=({"name": "look_up"},)))),
    ]
    assert [row.id for row in answered_rows(rows, "rows")] == ["a"]
    assert unanswered_note(3, 1) == [
        "2 of 3 test rows have no answer in words and are left out."
    ] and not unanswered_note(3, 3)
    with pytest.raises(DataError, match="none of 2 rows ends with an answer in words"):
        answered_rows(rows[1:], "rows")
