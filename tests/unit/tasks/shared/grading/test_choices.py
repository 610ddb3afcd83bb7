"""Options named by letter, number or text."""

import pytest

from tasks.shared.grading.choices import chosen_option

CITIES = ("York", "New York", "Oslo", "Bergen")


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("B", 1), ("(b)", 1), ("B.", 1), ("**C**", 2), ("B) New York", 1), ("C. Oslo, because it is the capital.", 2), ("2", 1), ("Option 3", 2),
        ("The answer is (D).", 3), ("Answer: C", 2), ("oslo", 2), ("It must be Bergen.", 3), ("New York", 1), ("I think New York is right.", 1),
        (r"so \boxed{C}", 2), ("The answer is A. No, the answer is D.", 3), ("Oslo or Bergen", None), ("E", None), ("0", None), ("", None),
        ("A city in the north.", None), ("The answer is a city.", None), ("The answer is 3 days.", None), ("the answer is **c**", 2),
    ],
)  # fmt: skip
def test_options(text: str, index: int | None) -> None:
    assert chosen_option(text, CITIES) == index


def test_the_text_of_an_option_comes_before_its_number() -> None:
    assert chosen_option("2", ("4", "3", "2")) == 2
    assert chosen_option("A", ("B", "A")) == 1
