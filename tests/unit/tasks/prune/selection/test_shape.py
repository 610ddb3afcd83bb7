"""Sizes of a student: what follows from the teacher, and what cannot be."""

from types import SimpleNamespace
from typing import Any

import pytest

from tasks.prune.selection.shape import Rule, Shape, check_taken, layers_by_rule, shape_of, student_shape
from tasks.shared.errors import TechniqueError

TEACHER = Shape(layers=12, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64)
SAME = {"layers": 0, "hidden": 0, "intermediate": 0, "heads": 0, "kv_heads": 0}


def student(**changes: Any) -> Shape:
    return student_shape(TEACHER, **(SAME | changes))


def test_zeros_are_the_teacher() -> None:
    assert student() == TEACHER


def test_one_number_of_heads_follows_the_other_in_the_teachers_ratio() -> None:
    assert student(heads=6).kv_heads == 2 and student(kv_heads=1).heads == 3
    assert student(heads=6, kv_heads=3).group == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": 13}, "13, but the teacher has 12"),
        ({"hidden": 640}, "hidden_size: 640"),
        ({"intermediate": 2048}, "intermediate_size: 2048"),
        ({"heads": 8}, "not a multiple of 3"),
        ({"heads": 8, "kv_heads": 3}, "not a multiple of 3"),
        ({"heads": 9, "kv_heads": 1}, "9 query heads for each of 1"),
        ({"kv_heads": 4}, "teacher has"),
    ],
)
def test_what_the_teacher_does_not_have_is_refused(changes: dict[str, int], words: str) -> None:
    with pytest.raises(TechniqueError, match=words):
        student(**changes)


def test_layers_that_start_afresh_may_be_more() -> None:
    assert student(layers=20, deeper=True).layers == 20


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("uniform", [0, 4, 7, 11]),
        ("first", [0, 1, 2, 3]),
        ("last", [8, 9, 10, 11]),
        ("ends", [0, 1, 10, 11]),
        ("none", []),
    ],
)
def test_rules(rule: Rule, wanted: list[int]) -> None:
    assert layers_by_rule(rule, 4, 12) == wanted


@pytest.mark.parametrize("rule", ["uniform", "first", "last", "ends"])
@pytest.mark.parametrize("total", [1, 2, 7, 30])
def test_every_rule_takes_different_layers_in_order_and_all_of_all(rule: Rule, total: int) -> None:
    for count in range(1, total + 1):
        found = layers_by_rule(rule, count, total)
        assert len(set(found)) == count and found == sorted(found) and set(found) <= set(range(total))
    assert layers_by_rule(rule, total, total) == list(range(total))


@pytest.mark.parametrize(("taken", "words"), [([12], "no layer 12"), ([3, 3], "twice")])
def test_wrong_explicit_layers_are_refused(taken: list[int], words: str) -> None:
    with pytest.raises(TechniqueError, match=words):
        check_taken(taken, 12)


def test_a_configuration_with_a_size_per_layer_is_refused() -> None:
    config = SimpleNamespace(num_hidden_layers=2, hidden_size=8, intermediate_size=[8, 16], num_attention_heads=2)
    with pytest.raises(TechniqueError, match="no single intermediate_size"):
        shape_of(config)
