"""Time of a token: the parts are found again from the times of a few models, and the models are of the sizes that they stand for."""

from dataclasses import replace
from typing import Any

import pytest

from tasks.prune.budget import Budget
from tasks.prune.cuts.latency import fitted, in_turn, measure, random_model, timed_cuts, token_milliseconds
from tasks.prune.cuts.size import Cut, Parameters
from tasks.prune.selection.shape import shape_of
from tests.tiny_llama import build_model


def tiny(layers: int = 4) -> tuple[Any, Parameters, list[Cut]]:
    model = build_model(num_hidden_layers=layers)
    before = shape_of(model.config)
    return model, Parameters.of(model, before), timed_cuts(Budget().levels_of(before, "llama"))


@pytest.mark.parametrize(("fixed", "layer", "weight"), [(3.0, 0.5, 1e-5), (0.0, 0.7, 0.0), (2.0, 0.0, 3e-5)])
def test_times_of_parts_are_found_again_and_foretell_other_cuts(fixed: float, layer: float, weight: float) -> None:
    _, parameters, cuts = tiny(12)

    def true(cut: Cut) -> float:
        return fixed + layer * len(cut.kept) + weight * (parameters.after(cut) - parameters.outer)

    found = fitted(parameters, [(cut, true(cut)) for cut in cuts])
    assert (found.fixed, found.layer, found.weight) == pytest.approx((fixed, layer, weight), rel=1e-6, abs=1e-9)
    assert found.error < 1e-6
    other = Cut((1, 5, 6), replace(parameters.before, intermediate=100))
    assert found.after(other) == pytest.approx(true(other))
    odd = fitted(parameters, [(cut, true(cut) * (2 if place == 0 else 1)) for place, cut in enumerate(cuts)])
    assert odd.error > 0.05 and min(odd.fixed, odd.layer, odd.weight) >= 0


def test_timed_models_have_the_sizes_of_their_cuts() -> None:
    model, parameters, cuts = tiny(12)
    assert cuts[0] == Cut((), parameters.before) and {len(cut.kept) for cut in cuts[1:]} == {6}
    assert {cut.shape.intermediate for cut in cuts} == {64, 128} and {cut.shape.heads for cut in cuts} == {2, 4}
    for cut in cuts:
        assert random_model(model.config, cut, "float32", "cpu").num_parameters() == parameters.after(cut)


def test_a_deeper_model_takes_longer_and_each_is_timed_in_every_round() -> None:
    model, parameters, _ = tiny()
    made: list[int] = []

    def maker(layers: int) -> Any:
        made.append(layers)
        return build_model(num_hidden_layers=layers)

    short, long = in_turn([lambda: maker(1), lambda: maker(16)], rounds=2)
    assert made == [1, 16, 1, 16] and 0 < short < long
    assert token_milliseconds(model) > 0
    found = measure(model.config, parameters, Budget().levels_of(parameters.before, "llama"), "float32", "cpu")
    assert found.after(Cut((), parameters.before)) > 0 and len(found.timed) == len(timed_cuts(Budget().levels_of(parameters.before, "llama")))  # fmt: skip
