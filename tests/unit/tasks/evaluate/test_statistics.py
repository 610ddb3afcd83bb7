"""Paired statistics against closed forms, scipy and statsmodels, and a simulation of the decision."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, bootstrap

from tasks.evaluate.statistics import (
    Flips,
    Interval,
    count_flips,
    difference_interval,
    mcnemar_p,
    minimum_detectable,
    non_inferior,
    retention_interval,
    unseen_loss,
    wilson,
)

SIMULATIONS = 200


def pairs(both: int, to_wrong: int, to_right: int, neither: int) -> tuple[list[bool], list[bool]]:
    cells = [(True, True)] * both + [(True, False)] * to_wrong + [(False, True)] * to_right + [(False, False)] * neither
    return [b for b, _ in cells], [c for _, c in cells]


def test_flips_count_both_directions() -> None:
    assert count_flips(*pairs(5, 3, 2, 1)) == Flips(3, 2, 11)
    assert count_flips(*pairs(5, 3, 2, 1)).rate == pytest.approx(5 / 11)
    with pytest.raises(ValueError, match="no items"):
        count_flips([], [])
    with pytest.raises(ValueError, match="shorter|longer"):
        count_flips([True], [True, False])


@given(st.integers(0, 30), st.integers(0, 30))
@settings(deadline=None, max_examples=30)
def test_mcnemar_is_the_binomial_test_of_the_flips(to_wrong: int, to_right: int) -> None:
    total = to_wrong + to_right
    wanted = binomtest(to_wrong, total).pvalue if total else 1.0
    assert mcnemar_p(Flips(to_wrong, to_right, total + 5)) == pytest.approx(wanted)


@given(st.integers(1, 200), st.floats(0, 1))
@settings(deadline=None, max_examples=30)
def test_wilson_matches_its_closed_form(items: int, share: float) -> None:
    right, z = round(share * items), 1.959963984540054
    p = right / items
    centre, width = (
        (p + z * z / (2 * items)) / (1 + z * z / items),
        z / (1 + z * z / items) * math.sqrt(p * (1 - p) / items + z * z / (4 * items * items)),
    )
    found = wilson(right, items)
    assert 0.0 <= found.low <= p <= found.high <= 1.0
    assert (found.low, found.high) == pytest.approx((max(0.0, centre - width), min(1.0, centre + width)), abs=1e-9)


def test_difference_interval_is_scipys_bca() -> None:
    before, after = pairs(60, 12, 5, 23)
    change = np.array(after, float) - np.array(before, float)
    wanted = bootstrap(
        (change,), np.mean, confidence_level=0.9, n_resamples=2000, method="BCa", rng=np.random.default_rng(7)
    ).confidence_interval
    found = difference_interval(before, after, alpha=0.05, resamples=2000, seed=7)
    assert (found.value, found.low, found.high) == pytest.approx(
        (-0.07, wanted.low, wanted.high), abs=0.011
    )  # one resampled item
    assert difference_interval(before, after, 0.05, 2000, 7) == found  # seeded


def test_no_flip_is_no_proof_with_few_items() -> None:
    few, many = [True] * 20, [True] * 100
    assert not non_inferior(difference_interval(few, few, 0.05, 500, 0), margin=0.05)
    found = difference_interval(many, many, 0.05, 500, 0)
    assert non_inferior(found, margin=0.05)
    assert (found.value, found.low, found.high) == pytest.approx((0.0, -unseen_loss(100, 0.05), unseen_loss(100, 0.05)))


def test_only_gains_do_not_hide_the_unseen_loss() -> None:
    found = difference_interval(*pairs(10, 0, 1, 1), alpha=0.05, resamples=500, seed=0)
    assert found.low == pytest.approx(-unseen_loss(12, 0.05))


@pytest.mark.parametrize("items", [1, 10, 300])
def test_unseen_loss_is_the_exact_bound(items: int) -> None:
    assert binom.pmf(0, items, unseen_loss(items, 0.05)) == pytest.approx(0.05)


def test_retention() -> None:
    same = retention_interval([True, False, True], [True, False, True], 0.05, 500, 0)
    assert same is not None
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    found = retention_interval(*pairs(70, 10, 0, 20), alpha=0.05, resamples=2000, seed=0)
    assert found is not None
    assert found.value == pytest.approx(70 / 80)
    assert found.low < found.value < found.high <= 1.0
    assert retention_interval([False] * 4, [True] * 4, 0.05, 500, 0) is None
    nearly = retention_interval(
        [True, False, False], [False, True, True], 0.05, 500, 0
    )  # some resamples have a baseline of zero
    assert nearly is not None
    assert math.isfinite(nearly.low)
    assert math.isfinite(nearly.high)


def test_all_lost_is_bounded_by_minus_one() -> None:
    found = difference_interval([True] * 30, [False] * 30, 0.05, 500, 0)
    assert (found.value, found.low) == (-1.0, -1.0)
    assert not non_inferior(found, 0.5)


def test_non_inferior_needs_the_bound_strictly_above() -> None:
    assert non_inferior(Interval(0, -0.049, 0), 0.05)
    assert not non_inferior(Interval(0, -0.05, 0), 0.05)


def test_minimum_detectable_shrinks_with_the_root_of_items() -> None:
    assert minimum_detectable(400, 0.06, 0.05, 0.8) == pytest.approx(minimum_detectable(100, 0.06, 0.05, 0.8) / 2)
    assert minimum_detectable(300, 0.06, 0.05, 0.8) == pytest.approx(
        (1.6448536 + 0.8416212) * math.sqrt(0.06 / 300), rel=1e-6
    )


def ship_rate(to_wrong: float, to_right: float, items: int, margin: float) -> float:
    draw, shipped = np.random.default_rng(3), 0
    for trial in range(SIMULATIONS):
        kind = draw.choice(3, size=items, p=[1 - to_wrong - to_right, to_wrong, to_right])
        before, after = (kind != 2).tolist(), (kind != 1).tolist()
        shipped += non_inferior(difference_interval(before, after, 0.05, 999, trial), margin)
    return shipped / SIMULATIONS


def test_simulated_false_ship_rate_at_the_margin_is_about_alpha() -> None:
    noise = 3 * math.sqrt(0.05 * 0.95 / SIMULATIONS)
    assert ship_rate(to_wrong=0.08, to_right=0.03, items=200, margin=0.05) <= 0.05 + noise
    assert ship_rate(to_wrong=0.03, to_right=0.03, items=400, margin=0.06) >= 0.8
