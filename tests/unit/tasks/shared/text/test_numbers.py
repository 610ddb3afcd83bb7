"""Numbers for people: one form per unit, in the console and on the pages."""

from tasks.shared.text.numbers import MISSING, byte_size, duration


def test_sizes_and_times_have_three_digits_and_the_largest_unit_that_fits() -> None:
    assert (byte_size(999), byte_size(269e6), byte_size(2.5e9)) == ("999 B", "269 MB", "2.50 GB")
    assert (duration(12.4), duration(600), duration(9000)) == ("12.4 s", "10 min", "2.5 h")
    assert byte_size(None) == duration(None) == MISSING
