"""Numbers, addresses and words that the sources do not hold."""

from tasks.shared.grounding import invented_addresses, invented_numbers, numbers, support

SOURCES = "You have 45 days to return an unused kettle, write to help@shop.example, or look at www.shop.example."


def test_numbers_in_digits_and_words_are_the_same_numbers() -> None:
    assert numbers("£1,200.50 within thirty-five days, at 09:30") >= {"1200.5", "35", "9:30"}
    assert "30" not in numbers("thirty-five days") and numbers("twenty of five") == {"20", "5"}
    assert numbers("a dozen beans") == numbers("12 beans")
    assert invented_numbers("That one is free.", "nothing") == set()
    assert invented_numbers("It takes 1 day.", "nothing") == {"1"}


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
