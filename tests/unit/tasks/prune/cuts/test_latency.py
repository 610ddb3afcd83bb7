"""Time of a token: the parts are found again from the times of a few models, and the models are of the sizes that they stand for."""

from dataclasses import replace
from typing import Any

import pytest

from tasks.prune.budget import Budget
from tasks.prune.cuts.latency import fitted, in_turn, measure, random_model, timed_cuts
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
    other = Cut((1, 5, 6), replace(parameters.before, intermediate=100))
    assert found.after(other) == pytest.approx(true(other))
    odd = fitted(parameters, [(cut, true(cut) * (2 if place == 0 else 1)) for place, cut in enumerate(cuts)])
    assert min(odd.fixed, odd.layer, odd.weight) >= 0 and odd.after(cuts[0]) != pytest.approx(true(cuts[0]))


def test_timed_models_have_the_sizes_of_their_cuts() -> None:
    model, parameters, cuts = tiny(12)
    assert cuts[0] == Cut((), parameters.before) and {len(cut.kept) for cut in cuts[1:]} == {6}
    assert {cut.shape.intermediate for cut in cuts} == {64, 128} and {cut.shape.heads for cut in cuts} == {2, 4}
    for cut in cuts:
        assert random_model(model.config, cut, "float32", "cpu").num_parameters() == parameters.after(cut)


def test_models_are_timed_in_turn_and_the_median_round_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock made up for the test: the second of three rounds is ten times as slow."""
    model, parameters, cuts = tiny()
    seen: list[int] = []

    def time(timed: Any) -> float:
        seen.append(timed.num_parameters())
        return timed.num_parameters() * (10.0 if len(cuts) <= len(seen) - 1 < 2 * len(cuts) else 1.0)

    monkeypatch.setattr("tasks.prune.cuts.latency.token_milliseconds", time)
    levels = Budget().levels_of(parameters.before, "llama")
    found = measure(model.config, parameters, levels, "float32", "cpu")
    assert seen == [parameters.after(cut) for cut in cuts] * 3
    other = Cut((2,), replace(parameters.before, intermediate=80))
    assert found.after(other) == pytest.approx(parameters.after(other))


def test_the_clock_itself_reads_a_model() -> None:
    """No figure is compared with another, since machines are busy."""
    (found,) = in_turn([lambda: build_model(num_hidden_layers=1)], rounds=1)
    assert found > 0
