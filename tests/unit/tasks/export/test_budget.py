"""The choice within a budget: exact, never over it, and refused with the smallest possible size."""

import itertools
import random

import pytest

from tasks.export.budget import check_budget, choose_types, choose_uniform, shared_types
from tasks.shared.errors import TechniqueError

SIZES = {
    "a": {"small": 10, "large": 20},
    "b": {"small": 100, "large": 200},
    "c": {"small": 10, "middle": 15, "large": 20},
}
LOSSES = {
    "a": {"small": 5.0, "large": 1.0},
    "b": {"small": 7.0, "large": 0.5},
    "c": {"small": 3.0, "middle": 2.0, "large": 1.0},
}


def test_the_largest_budget_takes_the_finest_types_and_the_smallest_the_coarsest() -> None:
    assert set(choose_types(SIZES, LOSSES, 240).values()) == {"large"}
    assert set(choose_types(SIZES, LOSSES, 120).values()) == {"small"}


def test_bytes_go_where_they_save_most() -> None:
    assert choose_types(SIZES, LOSSES, 139) == {"a": "large", "b": "small", "c": "middle"}
    assert choose_types(SIZES, LOSSES, 220) == {"a": "small", "b": "large", "c": "small"}


def test_a_type_that_is_larger_and_worse_is_never_taken() -> None:
    assert choose_types({"a": {"q5": 6, "q8": 8}}, {"a": {"q5": 0.1, "q8": 0.2}}, 100) == {"a": "q5"}


def test_the_choice_is_that_of_trying_all() -> None:
    draw = random.Random(0)
    for _ in range(50):
        sizes = {str(group): {str(kind): draw.randint(1, 30) for kind in range(3)} for group in range(4)}
        losses = {group: {kind: draw.random() for kind in options} for group, options in sizes.items()}
        least = sum(min(options.values()) for options in sizes.values())
        budget = draw.randint(least, least + 40)
        tried = [dict(zip(sizes, kinds, strict=True)) for kinds in itertools.product("012", repeat=4)]
        best = min(_loss(losses, kinds) for kinds in tried if _bytes(sizes, kinds) <= budget)
        found = choose_types(sizes, losses, budget)
        assert _bytes(sizes, found) <= budget and _loss(losses, found) == pytest.approx(best)


def _bytes(sizes: dict[str, dict[str, int]], kinds: dict[str, str]) -> int:
    return sum(sizes[group][kind] for group, kind in kinds.items())


def _loss(losses: dict[str, dict[str, float]], kinds: dict[str, str]) -> float:
    return sum(losses[group][kind] for group, kind in kinds.items())


def test_too_small_a_budget_is_refused_with_the_smallest_possible_size() -> None:
    check_budget(SIZES, 120, 200)
    with pytest.raises(TechniqueError, match=r"smallest types take 120\n.*4\.80 bits per weight\n.*bits=4\.80"):
        check_budget(SIZES, 119, 200)


def test_a_single_type_fits_every_group_and_the_budget() -> None:
    assert shared_types(SIZES.values()) == ["small", "large"]
    assert choose_uniform(SIZES, LOSSES, 240) == "large" and choose_uniform(SIZES, LOSSES, 239) == "small"
    assert choose_uniform(SIZES, LOSSES, 119) == ""
