"""What counts as stating a fact, as refusing, and as the answer's tokens."""

import pytest

from tasks.shared.text.answer_format import join_answer, split_answer
from tasks.shared.text.fact_matching import contains, refuses, states_fact
from tasks.shared.text.reasoning import join_reasoning, reasoning_prefix, split_reasoning


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("You have 45 days.", "45 days", True),
        ("You have 145 days.", "45 days", False),
        ("It costs $1,299 today", "$1299", True),
        ("It is 12.5 kg", "12", False),
        ("It is 12.", "12", True),
        ("call FENWICK’S workspace", "fenwick's", True),
        ("hold it for  ten\nseconds", "ten seconds", True),
        ("bar pressure", "bars", False),
    ],
)
def test_facts_are_whole_words(text: str, phrase: str, expected: bool) -> None:
    assert contains(text, phrase) is expected


def test_every_group_needs_one_of_its_alternatives() -> None:
    accept = (("45 days", "forty-five days"), ("receipt",))
    assert states_fact("Forty-five days, with the receipt.", accept)
    assert not states_fact("45 days.", accept)
    assert not states_fact("anything", ())


def test_answers_join_and_split() -> None:
    assert split_answer(join_answer("return", "45 days.")) == ("return", "45 days.")
    assert split_answer("no label here") == ("", "no label here")


@pytest.mark.parametrize(
    "text",
    ["I can't help with legal questions.", "Sorry, I’m not able to share that.", "We cannot disclose other orders."],
)
def test_refusals(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text", ["You can return it within 45 days.", "It can help to descale it.", "Yes, we share recipes weekly."]
)
def test_answers_are_no_refusals(text: str) -> None:
    assert not refuses(text)


def test_reasoning_before_an_answer_is_parted_from_it() -> None:
    message = join_reasoning("Step one failed.\nSo two.", "repair\nUse the blind disc.")
    assert split_reasoning(message) == ("Step one failed.\nSo two.", "repair\nUse the blind disc.")
    assert split_answer(message) == ("repair", "Use the blind disc.")
    assert reasoning_prefix(message) + "repair\nUse the blind disc." == message
    assert join_reasoning("", "repair\nYes.") == "repair\nYes."


def test_reasoning_that_never_ends_leaves_no_answer() -> None:
    assert split_answer("<think>\nrepair\nUse the disc.") == ("", "")
    assert reasoning_prefix("<think>\nrepair") == "" == reasoning_prefix("repair\nYes.")
    assert split_reasoning("So two.\n</think>\n\nrepair\nYes.") == ("So two.", "repair\nYes."), (
        "the prompt had the first mark"
    )
