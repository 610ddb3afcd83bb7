"""The number that an answer ends with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.shared.formats.targets import Number
from tasks.shared.formats.tasks import Task
from tasks.shared.grading.answer import read_answer
from tasks.shared.grading.grade import grade
from tasks.shared.grading.numbers import last_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("48 / 2 = 24, so 48 + 24 = 72\n#### 72", 72), ("#### 72 apples of 100", 72), ("4 boxes\n#### $1,234.50", 1234.5),
        (r"so \boxed{1{,}234} of 9", 1234), (r"\boxed{\frac{3}{4}}", 0.75), (r"$x = -\dfrac{1}{2}$", -0.5), (r"\boxed{12\%}", 12),
        ("1,234, and that is all", 1234), ("1.234,50 \u20ac", 1234.5), ("1.234.567", 1234567), ("2\u202f500 ml", 2500),
        ("1 234 567", 1234567), ("1'234", 1234), ("3,5 kg", 3.5), ("0,125", 0.125), ("the point (3,5)", 5), ("1,2,3", 3), ("1, 2, 3", 3),
        ("3.5.", 3.5), (".5", 0.5), ("\u22127 degrees", -7), ("-$5.20", -5.2), ("5-3", 3), ("USD72.", 72), ("**72**", 72), ("72km", 72),
        ("1 1/2 cups", 1.5), ("1\u00bd", 1.5), ("3/4", 0.75), ("1.5e3", 1500), ("25 %", 25), ("\u7b54\u6848\u662f72\u3002", 72), ("8 of 1e999", 8),
    ],
)  # fmt: skip
def test_forms_of_numbers(text: str, value: float) -> None:
    found = last_number(text)
    assert found is not None
    assert found[0] == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "none at all", "H2O", "v1.2.3b"[:2], "seventy-two"])
def test_no_number(text: str) -> None:
    assert last_number(text) is None


@given(st.decimals(-(10**9), 10**9, places=3))
def test_separators_do_not_change_the_value(value: float) -> None:
    english = f"{value:,}"
    german = english.translate(str.maketrans(",.", ".,"))
    found, other = last_number(f"It is {english} in all."), last_number(f"Es sind {german} zusammen.")
    assert found is not None and found[0] == pytest.approx(float(value))
    if abs(value) >= 1000:
        assert other is not None and other[0] == pytest.approx(float(value))


@pytest.mark.parametrize(("value", "right"), [(25, 1.0), (0.25, 1.0), (2.5, 0.0)])
def test_a_percentage_is_a_number_or_a_share(value: float, right: float) -> None:
    assert grade(Number(value=value), read_answer("It grew by 25%.", Task()), Task()) == right


def test_the_tolerance_counts() -> None:
    near = read_answer("about 3.14", Task())
    assert grade(Number(value=3.14159, tolerance=0.01), near, Task()) == 1.0
    assert grade(Number(value=3.14159), near, Task()) == 0.0
