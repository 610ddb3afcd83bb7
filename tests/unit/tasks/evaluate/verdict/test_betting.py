"""Bets against a loss: exact expectations, every path of few items, and the bound that agrees with the decision."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import multinomial

from tasks.evaluate.verdict.betting import (
    EQUAL_LOSS_BETS,
    confirmed,
    log_evidence,
    log_evidence_of,
    looks,
    lowest_mean,
    margin_bets,
)

ALPHA = 0.05
GOAL = math.log(1 / ALPHA)


@pytest.mark.parametrize("flips", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("true", [-0.05, -0.08, -0.1])
def test_wealth_grows_under_no_loss_beyond_the_margin(flips: float, true: float) -> None:
    """At a loss of exactly the margin, the mean wealth stays 1; beyond it, it falls; summed over all tables of nine items."""
    tables = [(lost, gained) for lost in range(10) for gained in range(10 - lost)]
    lost, gained = np.array(tables).T
    chances = multinomial.pmf(
        np.stack([lost, gained, 9 - lost - gained], axis=1), 9, [(flips - true) / 2, (flips + true) / 2, 1 - flips]
    )
    mean = float((chances * np.exp(log_evidence(lost, gained, 9, 0.05, margin_bets(0.05, 0.06)))).sum())
    assert mean == pytest.approx(1.0, abs=1e-9) if true == -0.05 else mean < 1.0


def test_counts_amounts_and_groups_are_one_process() -> None:
    gains = np.array([0.0, -1.0, 1.0, 0.0, 1.0, 0.0, 0.0, -1.0])
    bets = margin_bets(0.05, 0.06)
    by_item = log_evidence_of(gains, np.ones(8), -0.05, bets)
    by_count = log_evidence(np.cumsum(gains < 0), np.cumsum(gains > 0), np.arange(1, 9), 0.05, bets)
    assert by_item == pytest.approx(by_count)
    with pytest.raises(ValueError, match="between -1 and 1"):
        log_evidence_of([1.5], [1.0], -0.05, bets)


@pytest.mark.parametrize("values", [(-1.0, 0.25), (-0.5, 0.0, 0.5), (-1.0, -0.05, 1.0)])
def test_no_path_of_amounts_crosses_too_often(values: tuple[float, ...]) -> None:
    """All paths of seven units whose mean is the floor, at alpha 0.5, so that paths so short can cross."""
    floor, few = -0.2, 7
    chances = _chances_with_mean(values, floor)
    crossing = 0.0
    for path in itertools.product(range(len(values)), repeat=few):
        grown = log_evidence_of([values[place] for place in path], [1.0] * few, floor, margin_bets(0.2, 0.06))
        crossing += math.prod(chances[place] for place in path) * bool((grown >= math.log(2)).any())
    assert 0.0 < crossing <= 0.5


def _chances_with_mean(values: tuple[float, ...], mean: float) -> list[float]:
    """Probabilities of the values with this mean: equal ones in the middle, the rest on the extremes."""
    middle = [0.2] * (len(values) - 2)
    rest, total = 1.0 - sum(middle), mean - sum(0.2 * value for value in values[1:-1])
    high = (total - rest * values[0]) / (values[-1] - values[0])
    return [rest - high, *middle, high]


@pytest.mark.parametrize(
    ("lost", "gained", "items"), [(6, 6, 192), (0, 0, 40), (2, 1, 192), (15, 15, 500), (30, 6, 192), (0, 40, 100)]
)
def test_the_bound_agrees_with_the_decision_at_its_margin(lost: int, gained: int, items: int) -> None:
    gains = [-1.0] * lost + [1.0] * gained + [0.0] * (items - lost - gained)
    for margin in (0.02, 0.05, 0.1):
        bets = margin_bets(margin, 0.06)
        low = lowest_mean(gains, np.ones(items), bets, ALPHA)
        assert low <= (gained - lost) / items
        assert (low >= -margin) == (float(log_evidence(lost, gained, items, margin, bets)) >= GOAL)
    loss_shown = float(log_evidence(gained, lost, items, 0.0, EQUAL_LOSS_BETS)) >= GOAL
    assert (-lowest_mean([-gain for gain in gains], np.ones(items), EQUAL_LOSS_BETS, ALPHA) < 0) == loss_shown


def test_bounds_are_close_to_those_of_one_look() -> None:
    """The exact bounds of one look are -3.3, -7.2 and -1.9 points (docs/decisions/0010-the-bound-that-decides.md)."""
    bets = margin_bets(0.05, 0.06)
    found = [
        lowest_mean([-1.0] * flips + [1.0] * flips + [0.0] * (items - 2 * flips), np.ones(items), bets, ALPHA)
        for flips, items in ((6, 192), (0, 40), (15, 500))
    ]
    assert found == pytest.approx([-0.0516, -0.1051, -0.0322], abs=5e-4)


def test_several_candidates_share_the_error() -> None:
    evidence = [math.log(value) for value in (70.0, 19.0, 31.0, 1.0)]
    assert confirmed(evidence, ALPHA) == [False, False, False, False], "80, 40, 26.7 and 20 are needed in turn"
    assert confirmed([math.log(value) for value in (70.0, 27.0, 31.0, 1.0)], ALPHA) == [True, True, True, False]
    assert confirmed([math.log(20.1)], ALPHA) == [True], "one candidate needs 1 / alpha"
    assert confirmed([], ALPHA) == []


def test_looks_end_with_the_last_unit() -> None:
    assert list(looks(40, 16)) == [16, 32, 40]
    assert list(looks(32, 16)) == [16, 32]
    assert list(looks(5, 16)) == [5]
