"""Numbers, addresses and words that the sources do not hold."""

import pytest

from tasks.shared.text.grounding import invented_addresses, invented_numbers, numbers, support

SOURCES = "You have 45 days to return an unused kettle, write to help@shop.example, or look at www.shop.example."


def test_numbers_in_digits_and_words_are_the_same_numbers() -> None:
    assert numbers("£1,200.50 within thirty-five days, at 09:30") >= {"1200.5", "35", "9:30"}
    assert "30" not in numbers("thirty-five days") and numbers("twenty of five") == {"20", "5"}
    assert numbers("a dozen beans") == numbers("12 beans")
    assert invented_numbers("That one is free.", "nothing") == set()
    assert invented_numbers("It takes 1 day.", "nothing") == {"1"}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("two hundred", {"200"}),
        ("a hundred and twenty-five", {"125"}),
        ("three thousand four hundred and six", {"3406"}),
        ("twelve thousand", {"12000"}),
        ("two dozen", {"24"}),
        ("one hundred and two hundred", {"100", "200"}),
        ("ninety nine, zero", {"99", "0"}),
        ("twenty twenty", {"20"}),
        ("9:00 am", {"9"}),
        ("9.30 a.m.", {"9:30"}),
    ],
)
def test_numbers_in_words_are_read_whole(words: str, found: set[str]) -> None:
    assert numbers(words) == found


def test_the_numbers_of_a_list_are_not_invented() -> None:
    assert invented_numbers("Do this:\n1. Pack it.\n2. Label it.\n3) Send it.", "nothing") == set()
    assert invented_numbers("1. Pack it. 2. Label it. **3. Send it within 14 days.**", "nothing") == {"14"}
    assert invented_numbers("It takes:\n45. Then it is over.", "nothing") == {"45"}, "no list begins so"
    assert invented_numbers("It takes 2. Then", "nothing") == {"2"}


@pytest.mark.parametrize(
    "around", ["({})", "{}!", "**{}**", "<{}>", "[{0}](mailto:{0})", "mail:{};", "_{}_", "'{}'", '"{}",']
)
def test_marks_around_an_address_do_not_make_it_another(around: str) -> None:
    for address in ("help@shop.example", "www.shop.example"):
        assert invented_addresses(f"Write to {around.format(address)} today", SOURCES) == []
    assert invented_addresses(f"See {around.format('sales@shop.example')}", SOURCES)[0] == "sales@shop.example"


def test_support_is_one_for_a_copy_and_zero_for_other_words() -> None:
    assert support(SOURCES, SOURCES) == 1.0
    assert support("Wizards levitate", SOURCES) == 0.0
    assert support("", SOURCES) == 1.0


def test_an_address_must_be_in_the_sources() -> None:
    assert invented_addresses("Write to Help@shop.example.", SOURCES) == []
    assert invented_addresses("Write to sales@shop.example, or see shop.com.", SOURCES) == [
        "sales@shop.example",
        "shop.com",
    ]
