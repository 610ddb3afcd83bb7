"""Quantities: what can be compared with what, and what contradicts a fact."""

import pytest

from tasks.shared.text.quantities import contradictions, quantities


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("within 45 days", [("time", ("minutes", 64800.0))]),
        ("a 24-month warranty", [("time", ("months", 24.0))]),
        ("two years", [("time", ("months", 24.0))]),
        ("6 working days or twenty-five minutes", [("time", ("minutes", 8640.0)), ("time", ("minutes", 25.0))]),
        ("£1,200.50 or 60 pence", [("money", ("money", 1200.5)), ("money", ("money", 0.6))]),
        (
            "10% off, 20 per cent, 9 bar",
            [("percent", ("percent", 10.0)), ("percent", ("percent", 20.0)), ("bar", ("bar", 9.0))],
        ),
        ("at 09:30", [("clock", ("clock", 570.0))]),
        (
            "9 am, 9:00 a.m., 9.30 am, 9 pm, 12 am, 12pm, 17:00",
            [("clock", ("clock", 60.0 * hour)) for hour in (9, 9, 9.5, 21, 0, 12, 17)],
        ),
        ("at 9 I am there, 30:99", []),
        ("50 cents or 20 per cent, 5 per day", [("money", ("money", 0.5)), ("percent", ("percent", 20.0))]),
        ("two hundred and five days", [("time", ("minutes", 205 * 1440.0))]),
        ("model 3 from 2024, 7 of them", []),
        ("", []),
    ],
)
def test_a_number_with_its_unit(text: str, kinds: list[object]) -> None:
    assert [(found.kind, found.amount) for found in quantities(text)] == kinds


ACCEPT = (("45 days", "forty-five days"),)


def test_another_value_of_the_same_kind_contradicts() -> None:
    assert contradictions("You have 14 days.", ACCEPT) == ["14 days"]
    assert contradictions("You have two months.", ACCEPT) == ["2 months"]
    assert contradictions("It costs £3.", ACCEPT) == []


def test_a_stated_fact_an_equal_value_and_the_customers_own_number_do_not() -> None:
    assert contradictions("You have 45 days, and a label within 2 days.", ACCEPT) == []
    assert contradictions("It lasts 24 months.", (("two years",),)) == []
    assert contradictions("After 14 days it is late.", ACCEPT, "It came 2 weeks ago.") == []


def test_a_time_without_its_half_of_the_day_contradicts_neither() -> None:
    assert contradictions("We close at 5:30.", (("5:30 pm",),)) == []
    assert contradictions("We close at 5:30 am.", (("5:30 pm",),)) == ["5:30 am"]
    assert contradictions("We open at 9:00 am.", (("9 am",),)) == []
    assert contradictions("We open at 9 pm.", (("9 am",),)) == ["9 pm"]
    assert contradictions("We close at 17:30.", (("5:30 pm",),)) == []


def test_every_group_is_looked_at_on_its_own() -> None:
    both = (("45 days",), ("£3.50",))
    assert contradictions("You have 45 days and pay £4.", both) == ["£4"]
    assert contradictions("Nothing at all.", both) == [] and contradictions("9 days", ()) == []
