"""Choice within a budget, of divergences made up for the test: every cut that fits is seen, and the measured best one wins."""

from dataclasses import replace
from itertools import product

import pytest

from tasks.prune.cuts.choice import Bound, Levels, between, candidates, keeps_all, needed_points, removal_order, search
from tasks.prune.cuts.size import Cut
from tasks.prune.selection.shape import Shape
from tasks.shared.errors import TechniqueError

WHOLE = Shape(layers=6, hidden=64, intermediate=128, heads=4, kv_heads=2, head_dim=16)
ONE_GROUP = replace(WHOLE, heads=2, kv_heads=1)
LEVELS = Levels(WHOLE, 3, (128, 112, 96, 80, 64), (128, 96, 64), (WHOLE, ONE_GROUP))


def count(cut: Cut) -> int:
    """A tenth of a parameter for every neuron, 4 for every head, 1,000 besides."""
    return 1000 + len(cut.kept) * (3 * cut.shape.intermediate + 40 * cut.shape.heads)


def added(cut: Cut) -> float:
    """Divergences that add up: later layers cost less, neurons little, heads much."""
    neurons, heads = (128 - cut.shape.intermediate) / 64, (4 - cut.shape.heads) * 1.5
    return sum((6 - layer) / 4 for layer in cut.dropped) + neurons + heads


def test_layers_go_in_the_order_of_what_the_cut_costs_so_far() -> None:
    """Layers 4 and 5 cost little each, and much together; the shortlist of one does not see it."""

    def divergence(cut: Cut) -> float:
        return added(cut) + (10.0 if {4, 5} <= set(cut.dropped) else 0.0)

    order = removal_order(LEVELS, 3, divergence, lambda cut: False)
    assert [cut.dropped for cut in order] == [(), (5,), (3, 5), (2, 3, 5)]
    blind = removal_order(LEVELS, 1, divergence, lambda cut: False)
    assert [cut.dropped for cut in blind] == [(), (5,), (4, 5), (3, 4, 5)]
    assert len(removal_order(LEVELS, 3, divergence, lambda cut: len(cut.dropped) == 1)) == 2
    assert removal_order(LEVELS, 3, lambda cut: pytest.fail("measured"), lambda cut: True) == [Cut((), WHOLE)]
    equal = removal_order(LEVELS, 2, lambda cut: 0.0, lambda cut: False)
    assert equal[-1].dropped == (3, 4, 5), "of equal ones the later"


@pytest.mark.parametrize("budget", range(1900, 4400, 130))
def test_no_cut_within_the_budget_keeps_more_than_the_candidates(budget: int) -> None:
    layers = removal_order(LEVELS, 2, added, lambda cut: count(cut) <= budget)
    found = candidates(LEVELS, layers, lambda cut: count(cut) <= budget)
    all_cuts = [
        Cut(cut.dropped, replace(heads, intermediate=width))
        for cut, heads, width in product(layers, LEVELS.heads, LEVELS.widths)
    ]
    fitting = [cut for cut in all_cuts if count(cut) <= budget]
    best = [cut for cut in fitting if not any(other != cut and keeps_all(other, cut) for other in fitting)]
    assert set(found) == set(best) and len(found) == len(set(found))
    if fitting:
        chosen = search(LEVELS, 2, 1, added, Bound(budget, count)).chosen
        assert chosen.measured == pytest.approx(min(map(added, fitting))) and chosen.cost <= budget


def test_a_budget_that_the_whole_model_fits_takes_nothing_and_measures_next_to_nothing() -> None:
    asked: list[Cut] = []

    def divergence(cut: Cut) -> float:
        asked.append(cut)
        return added(cut)

    assert search(LEVELS, 3, 3, divergence, Bound(10_000, count)).chosen.cut == Cut((), WHOLE)
    assert set(asked) == {Cut((), WHOLE)}


def test_a_budget_below_the_smallest_cut_is_refused() -> None:
    assert LEVELS.smallest == Cut((0, 1, 2), replace(ONE_GROUP, intermediate=64))
    assert search(LEVELS, 3, 3, added, Bound(count(LEVELS.smallest), count)).chosen.cost == count(LEVELS.smallest)
    with pytest.raises(TechniqueError, match="no cut leaves"):
        search(LEVELS, 3, 3, added, Bound(count(LEVELS.smallest) - 1, count))


def test_what_is_measured_wins_over_what_was_predicted() -> None:
    """Layers and neurons together are far worse than their sum; the best cut of a single kind is measured in any case."""

    def divergence(cut: Cut) -> float:
        return added(cut) * (1 if len(cut.kinds(WHOLE)) < 2 else 50)

    budget = 2900
    found = search(LEVELS, 3, 2, divergence, Bound(budget, count))
    assert len(found.candidates[0].cut.kinds(WHOLE)) == 2, "predicted to be the best"
    assert found.candidates[0].measured == pytest.approx(50 * found.candidates[0].predicted)
    assert len(found.chosen.cut.kinds(WHOLE)) == 1 and found.chosen.measured == found.chosen.predicted
    assert [each.predicted for each in found.candidates] == sorted(each.predicted for each in found.candidates)
    assert {kind for kind, *_ in found.measurements} == {"layer", "layers", "neurons", "heads"}


def test_widths_between_two_levels_are_interpolated_and_levels_below_all_cuts_not_measured() -> None:
    points = {128: 0.0, 96: 0.2, 64: 0.8}
    assert [between(points, width) for width in (128, 112, 96, 80, 64)] == pytest.approx([0.0, 0.1, 0.2, 0.5, 0.8])
    cuts = [Cut((), replace(WHOLE, intermediate=width)) for width in (128, 100)]
    assert needed_points((128, 96, 64), cuts) == [128, 96]
    assert needed_points((128, 96, 64), cuts[:1]) == [128]
