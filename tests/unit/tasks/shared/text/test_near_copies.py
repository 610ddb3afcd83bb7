"""Near-copies: edited texts are found at any length, questions about another matter are not."""

import pytest

from tasks.shared.text.near_copies import LONG, SHORT, SHORT_LIMIT, copy_limit, is_copy
from tasks.shared.text.overlap import TextIndex

LETTER = (
    "Good morning, I ordered the blue kettle on Monday and it has not arrived yet, although the page says that it was "
    "delivered yesterday. Could you please tell me where it is?"
)


def copied(first: str, second: str, limit: float = 0.5) -> bool:
    return is_copy(TextIndex([first]).nearest(second)[0], first, second, limit)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("How long do I have to return it?", "How long do I have to return itt?"),
        ("Where is my parcel?", "where is my  PARCEL??"),
        ("hi", "Hi!"),
        ("返品できますか。", "返品できますか"),
        (LETTER, LETTER.replace("Monday", "Friday").replace("blue", "green")),
        (LETTER, "Hello there! " + LETTER + " Thanks a lot, Ann"),
    ],
)
def test_edited_copies(first: str, second: str) -> None:
    assert copied(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("How do I change my PIN?", "How do I change my plan?"),
        ("What is my account balance?", "What is my account number?"),
        ("How do I cancel my order?", "How do I track my order?"),
        ("hi", "no"),
        (
            LETTER,
            "Could you tell me how the blue kettle is descaled, and how often that has to be done in a year with hard water?",
        ),
    ],
)
def test_questions_about_another_matter(first: str, second: str) -> None:
    assert not copied(first, second)


def test_the_limit_rises_for_short_texts() -> None:
    assert copy_limit(LONG, 0.4) == 0.4 and copy_limit(SHORT, 0.4) == copy_limit(1, 0.4) == SHORT_LIMIT
    assert 0.4 < copy_limit((LONG + SHORT) // 2, 0.4) < SHORT_LIMIT
    assert copy_limit(3, 0.9) == 0.9
