"""The cliff: found where a shown loss leaves the trend of the larger models, and nowhere else."""

from math import log2

import pytest
from verdict_samples import a_verdict

from tasks.evaluate.verdict.cliff import Point, cliff_notes, find_cliff, find_cliffs, frontier
from tasks.report.figures.tradeoff import cliff_edge
from tasks.shared.formats.verdict import Comparison


def points(*given: tuple[str, float, float, bool]) -> list[Point]:
    """Points by name, times smaller, loss, and whether it is shown."""
    return [Point(name, log2(smaller), loss, shown) for name, smaller, loss, shown in given]


SLOPE = [("a", 2.0, 0.01, False), ("b", 4.0, 0.02, True)]


def test_the_first_loss_of_more_than_twice_the_trend_is_the_cliff() -> None:
    found = find_cliff(points(*SLOPE, ("c", 8.0, 0.10, True), ("d", 16.0, 0.40, True)))
    assert found is not None and (found.model, found.before, found.times_smaller) == ("c", "b", 8.0)
    assert found.loss == 0.10 and found.expected == pytest.approx(0.03)


@pytest.mark.parametrize(
    "last",
    [("c", 8.0, 0.06, True), ("c", 8.0, 0.10, False), ("c", 8.0, -0.02, False)],
    ids=["on twice the trend", "not shown", "a gain"],
)
def test_no_cliff(last: tuple[str, float, float, bool]) -> None:
    assert find_cliff(points(*SLOPE, last)) is None


def test_a_first_model_has_no_trend_and_one_without_a_loss_has_a_flat_one() -> None:
    assert find_cliff(points(("a", 2.0, 0.5, True))) is None
    found = find_cliff(points(("a", 2.0, -0.01, False), ("b", 4.0, 0.02, True)))
    assert found is not None and found.model == "b" and found.expected == 0


def test_a_loss_within_the_margin_is_no_cliff() -> None:
    """KL of any rounding is shown, and far above the trend of 8 bits."""
    given = points(("eight", 1.9, 0.0002, True), ("four", 2.9, 0.0116, True), ("two", 7.0, 0.8, True))
    found, within = find_cliff(given, 0.1), find_cliff(given)
    assert found is not None and found.model == "two" and within is not None and within.model == "four"


def test_models_that_smaller_ones_beat_are_no_cliff_and_no_part_of_the_trend() -> None:
    bad = ("bad", 2.0, 0.5, True)
    assert [point.name for point in frontier(points(bad, *SLOPE))] == ["a", "b"]
    assert find_cliff(points(bad, *SLOPE)) is None
    assert [point.name for point in frontier(points(("one", 2.0, 0.1, True), ("two", 2.0, 0.2, True)))] == ["one"]
    larger = ("larger", 0.5, 0.0, False)
    assert find_cliff(points(larger, *SLOPE)) is None, "models larger than the baseline have no halvings"


def test_a_verdict_names_measure_models_and_sizes() -> None:
    verdict = a_verdict()
    names = list(verdict.comparisons)
    models, comparisons = dict(verdict.models), dict[str, Comparison]()
    for name, smaller, loss in zip(names, (2, 8, 16), (0.001, 0.3, 0.4), strict=False):
        models[name] = models[name].model_copy(update={"size_bytes": models[verdict.baseline].size_bytes // smaller})
        changed = {
            measure: result.model_copy(update={"difference": -loss, "high": 0.01 - loss})
            for measure, result in verdict.comparisons[name].measures.items()
        }
        comparisons[name] = verdict.comparisons[name].model_copy(update={"measures": changed})
    found = find_cliffs(verdict.baseline, models, comparisons, verdict.gates)
    assert found and {cliff.model for cliff in found.values()} == {names[1]}
    assert set(found) <= {name for name, gate in verdict.gates.items() if gate.margin is not None}
    notes = list(cliff_notes(found, models, verdict.gates))
    assert all(f"between {names[0]} (" in note and "8.0x smaller" in note for note in notes)
    assert cliff_edge([], next(iter(found.values()))) is None
