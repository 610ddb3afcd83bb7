"""Claims that count as hallucination."""

import pytest

from tasks.evaluate.grading.unsupported_claims import FINDINGS, Finding, find_unsupported_claim
from tasks.shared.formats.rows import Message
from tests.support_rows import TASKS, support_row

ARTICLE = "Returns\nSend back an unused kettle within 45 days. The refund takes 6 working days. Mail help@shop.example for a label."
ROW = support_row(
    id="a", kind="faq", intent="returns", article="a1", group="g", accept=(("45 days", "forty-five days"),),
    messages=(
        Message(role="user", content="I bought it 3 weeks ago, can it go back?"),
        Message(role="assistant", content="returns\nYou can send it back within 45 days."),
    ),
)  # fmt: skip
PROMPT = f"{ARTICLE}\n{ROW.messages[0].content}"
CUT = PROMPT.replace("Send back an unused kettle within 45 days. ", "")


def find(text: str, prompt: str = PROMPT, support: float = 0.5, memory_counts: bool = False) -> Finding:
    return find_unsupported_claim(
        text, ROW, TASKS["support"], prompt, support, answer_given=prompt == PROMPT, memory_counts=memory_counts
    )


@pytest.mark.parametrize(
    ("text", "name", "detail"),
    [
        ("You have 45 days, mail sales@shop.example.", "address", "sales@shop.example"),
        ("You have 45 days and 17 hours.", "number", "17"),
        ("It takes thirty days.", "number", "30"),
        ("You have 6 working days.", "contradiction", "6 working days"),
        ("Wizards polish every dragon within 45 days.", "unsupported", "wizards, polish, every, dragon"),
    ],
)
def test_what_is_nowhere_in_the_prompt_is_an_invention(text: str, name: str, detail: str) -> None:
    assert find(text) == Finding(name, detail, hallucinated=True)


@pytest.mark.parametrize(
    "text",
    [
        "You can send it back within 45 days.", "Within forty-five days of unused kettles.", "After 3 weeks you still can: send the kettle back.",
        "Mail help@shop.example.", "I'm sorry for the confusion.", "Sorry, I can't help with that.", "",
    ],
)  # fmt: skip
def test_what_the_prompt_holds_is_not(text: str) -> None:
    assert find(text) == Finding()


def test_without_the_answer_any_value_is_one_and_the_right_one_was_remembered() -> None:
    assert find("You have 30 days.", CUT).name == "number"
    assert find("You have 6 working days.", CUT).name == "contradiction"
    assert find("You can send the kettle back.", CUT) == find("Sorry, I can't help with that.", CUT) == Finding()
    assert find("Within 45 days.", CUT) == Finding("remembered", "the fact that the prompt lacks", hallucinated=False)
    assert find("Within 45 days.", CUT, memory_counts=True).hallucinated
    assert not find("Within 45 days.", memory_counts=True).hallucinated, "the prompt holds it"


def test_what_rules_cannot_see() -> None:
    assert find("You cannot send it back within 45 days.") == Finding(), "a claim turned round"
    assert find("Mail help@shop.example within 45 days for the refund.") == Finding(), (
        "a value of another thing beside the fact"
    )


def test_support_is_a_setting() -> None:
    assert find("Wizards polish every dragon within 45 days.", support=0.0) == Finding()
    assert find("You can swiftly return it within 45 days.", support=1.0).name == "unsupported"


def test_words_for_people() -> None:
    assert find("It takes thirty days.").words() == "[number: 30]" and Finding().words() == ""
    assert set(FINDINGS) == {"address", "number", "contradiction", "unsupported", "remembered"}
