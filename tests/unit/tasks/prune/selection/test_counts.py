"""Number of units that stay: near what was asked, at widths that formats take, or refused."""

import pytest

from tasks.prune.selection.counts import best_multiple, check_count, choose_count
from tasks.shared.errors import TechniqueError


@pytest.mark.parametrize(
    ("total", "ratio", "size", "kept"),
    [
        (11008, 0.25, 1, 8192),  # 8256 asked: a multiple of 256 is near
        (1536, 0.25, 1, 1152),  # 256 would move it by 8 %
        (1536, 1 / 3, 1, 1024),
        (128, 0.5, 1, 64),
        (100, 0.25, 1, 75),  # 64 and 96 are too far
        (3, 0.25, 192, 2),  # groups of 3 heads of 64: whole groups only
        (9, 0.3, 64, 6),
        (1536, 0.0, 1, 1536),
    ],
)
def test_the_first_multiple_that_is_near_is_taken(total: int, ratio: float, size: int, kept: int) -> None:
    assert choose_count(total, ratio, size) == kept


def test_an_explicit_multiple_is_kept_however_far() -> None:
    assert choose_count(1536, 0.25, multiple=256) == 1280, "of 1024 and 1280, equally near, the larger"
    assert choose_count(1536, 0.25, multiple=1) == 1152
    assert choose_count(10, 0.25, multiple=1) == 8


def test_numbers_that_the_configuration_does_not_take_are_passed_over() -> None:
    assert choose_count(15, 0.4, 64, fits=lambda count: 960 % count == 0) == 10
    with pytest.raises(TechniqueError, match="7 of 15, which the model's configuration does not take"):
        check_count("kept", 7, 15, lambda count: 960 % count == 0)
    assert check_count("kept", 6, 15, lambda count: 960 % count == 0) == 6


@pytest.mark.parametrize(
    ("total", "ratio", "multiple", "words"),
    [
        (4, 0.95, 0, r"leaves none of 4\n.*\n  fix: ratio=0\.75 or less"),
        (1, 0.6, 0, "leaves none of 1"),
        (3, 0.05, 0, r"removes none.*\n.*\n  fix: ratio=0\.33 or more"),
        (256, 0.2, 256, r"removes none.*\n.*a multiple of 256\n.*multiple=1"),
    ],
)
def test_a_ratio_that_leaves_or_removes_nothing_is_refused(total: int, ratio: float, multiple: int, words: str) -> None:
    with pytest.raises(TechniqueError, match=words):
        choose_count(total, ratio, multiple=multiple)


@pytest.mark.parametrize(("total", "ratio"), [(3, 0.05), (3, 0.95), (256, 0.9999), (1536, 1e-4), (1536, 0.9999)])
def test_the_ratio_that_an_error_names_is_one_that_works(total: int, ratio: float) -> None:
    with pytest.raises(TechniqueError) as caught:
        choose_count(total, ratio, multiple=1)
    named = float(caught.value.fix.removeprefix("ratio=").split()[0])
    assert choose_count(total, named, multiple=1) in (1, total - 1)


@pytest.mark.parametrize("count", [0, 5])
def test_a_number_that_is_not_there_is_refused(count: int) -> None:
    with pytest.raises(TechniqueError, match=f"neurons: {count} of 4|{count} of 4"):
        check_count("neurons", count, 4)


def test_multiples_by_width() -> None:
    assert [best_multiple(width) for width in (512, 576, 96, 100)] == [256, 64, 32, 1]
