"""Grades of replies under every measure."""

import pytest

from tasks.evaluate.grading.answers import (
    MEASURES,
    Reply,
    applies_to,
    expected_text,
    grade_reply,
    reply_text,
    rouge_l,
    truncation_notes,
)
from tasks.shared.formats.rows import Message, Row
from tasks.shared.text.answer_format import join_answer
from tests.support_rows import support_row

LABELS = ("returns", "warranty", "other")


def make_row(
    text: str = "That is 45 days.", kind: str = "faq", accept: tuple[tuple[str, ...], ...] = (("45 days",),)
) -> Row:
    turns = (Message(role="user", content="How long?"), Message(role="assistant", content=join_answer("returns", text)))
    return support_row(id="a", kind=kind, group="g", accept=accept, messages=turns)


def value(measure: str, words: str, row: Row | None = None, choice: str = "returns", **more: bool) -> float | None:
    return grade_reply(row or make_row(), Reply(choice, words, **more), measure, LABELS)  # type: ignore[arg-type]


def test_the_gold_answer_is_right_in_every_way() -> None:
    row = make_row()
    found = {name: value(name, row.answer) for name in MEASURES if applies_to(row, name)}
    assert found == {"intent": 1, "fact": 1, "over_refusal": 0, "format": 1, "loop": 0, "exact": 1, "rouge_l": 1.0}


def test_a_refusal_is_wrong_where_there_is_an_answer_and_right_where_there_must_be_none() -> None:
    words = "other\nI can't help with that."
    assert (value("fact", words), value("over_refusal", words), value("intent", words, choice="other")) == (0, 1, 0)
    refuse = make_row("I cannot help with that.", "refuse", ())
    assert [name for name in MEASURES if not applies_to(refuse, name)] == ["fact", "over_refusal"]
    assert (value("refusal", words, refuse), value("refusal", "returns\nOf course.", refuse)) == (1, 0)


def test_a_gold_answer_that_reads_like_a_refusal_is_no_item_of_over_refusal() -> None:
    assert not applies_to(make_row("We cannot change the 45 days."), "over_refusal")


@pytest.mark.parametrize("words", ["That is 45 days.", "gibberish\nThat is 45 days.", "returns\n", "returns", ""])
def test_form_needs_a_known_label_and_text(words: str) -> None:
    assert value("format", words) == 0


def test_form_needs_an_end() -> None:
    assert value("format", "returns\nThat is 45 days.") == 1
    assert value("format", "returns\nThat is 45 days and", ended=False) == 0
    assert reply_text(Reply("returns", "returns\nThat is", ended=False), "format") == "returns\nThat is ..."


def test_a_reference_answers_without_a_label_line_and_keeps_its_first_line() -> None:
    assert value("format", "That is 45 days.", labeled=False) is None
    assert value("fact", "45 days.\nAsk me more.", labeled=False) == 1
    assert value("fact", "45 days.\nAsk me more.") == 0


def test_exact_match_is_of_the_text_after_normalizing() -> None:
    assert value("exact", "warranty\nTHAT is  45 days.") == 1
    assert value("exact", "returns\nThat is 46 days.") == 0
    assert expected_text(make_row(), "exact") == "That is 45 days." and expected_text(make_row(), "intent") == "returns"


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    assert rouge_l("a b c d", "a x c d") == pytest.approx(0.75)
    assert rouge_l("a b", "a b c d") == pytest.approx(2 * 1.0 * 0.5 / 1.5)
    assert rouge_l("a b", "") == 0.0
    assert rouge_l("tähtaeg on 45 päeva", "TÄHTAEG on 45 aastat") == pytest.approx(0.75)


def test_a_loop_counts_against_the_model() -> None:
    assert value("loop", "returns\ndays days days") == 1
    assert MEASURES["loop"].better == MEASURES["over_refusal"].better == "lower"


def test_reasoning_is_taken_off_before_anything_is_graded() -> None:
    words = "<think>\nIt is not 14 days. I can't help it.\n</think>\nreturns\nThat is 45 days."
    assert (value("fact", words), value("over_refusal", words), value("format", words), value("exact", words)) == (
        1,
        0,
        1,
        1,
    )
    assert Reply("", words, labeled=False).text == "returns\nThat is 45 days."
    assert value("fact", "<think>\nIt is 45 days.\n</think>\nreturns\nNo idea.") == 0, "what counts is the answer"
    assert value("loop", "<think>\nso so so so") == 1


def test_answers_cut_within_their_reasoning_are_told() -> None:
    cut, whole = (
        Reply("", "<think>\nIt is", ended=False),
        Reply("", "<think>\nIt is.\n</think>\nreturns\n45", ended=False),
    )
    assert truncation_notes({"a": [cut, whole], "b": [whole]}, 8) == [
        "a: 1 of 2 answers were truncated within their reasoning; raise max_new_tokens (8)."
    ]
    assert (value("fact", cut.output), value("format", cut.output, ended=False)) == (0, 0)
