"""Intervals against scipy, a reference bootstrap, and simulated rare large losses."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, ttest_1samp

from tasks.evaluate.verdict.exact_bounds import difference_bounds
from tasks.evaluate.verdict.intervals import (
    grouped_bounds,
    mean_bounds,
    ratio_bounds,
    retention_bounds,
    score_bounds,
    unseen_share,
    wilson,
)
from tasks.evaluate.verdict.pairs import by_group

ALPHA = 0.05
DRAW = np.random.default_rng(11)
AMOUNTS, WEIGHTS = -DRAW.lognormal(0.0, 1.0, 60), DRAW.lognormal(0.0, 0.5, 60)


@given(st.integers(1, 200), st.floats(0, 1))
@settings(deadline=None, max_examples=30)
def test_wilson_matches_its_closed_form(items: int, share: float) -> None:
    right, z = round(share * items), 1.959963984540054
    p = right / items
    center = (p + z * z / (2 * items)) / (1 + z * z / items)
    width = z / (1 + z * z / items) * math.sqrt(p * (1 - p) / items + z * z / (4 * items * items))
    found = wilson(right, items)
    assert 0.0 <= found.low <= p <= found.high <= 1.0
    assert (found.low, found.high) == pytest.approx((max(0.0, center - width), min(1.0, center + width)), abs=1e-9)


def test_student_is_scipys() -> None:
    ones = np.ones(60)
    student, _, _ = ratio_bounds(AMOUNTS, ones, ALPHA, 200, 0)
    wanted = ttest_1samp(AMOUNTS, 0.0).confidence_interval(1 - 2 * ALPHA)
    assert student == pytest.approx((wanted.low, wanted.high))


def test_bca_of_a_weighted_mean_is_scipys() -> None:
    _, bca, _ = ratio_bounds(WEIGHTS * AMOUNTS, WEIGHTS, ALPHA, 20_000, 0)
    wanted = bootstrap(
        (WEIGHTS * AMOUNTS, WEIGHTS), lambda u, v, axis=-1: u.sum(axis=axis) / v.sum(axis=axis), paired=True, vectorized=True,
        confidence_level=1 - 2 * ALPHA, n_resamples=20_000, batch=1000, method="BCa", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert bca == pytest.approx((wanted.low, wanted.high), abs=0.02)


def test_studentized_bounds_are_those_of_a_loop() -> None:
    draw, items = np.random.default_rng(2), len(AMOUNTS)
    mean, error = AMOUNTS.mean(), AMOUNTS.std(ddof=1) / items**0.5
    pivots = []
    for _ in range(8000):
        again = AMOUNTS[draw.integers(items, size=items)]
        pivots.append((again.mean() - mean) / (again.std(ddof=1) / items**0.5))
    wanted = mean - np.quantile(pivots, [1 - ALPHA, ALPHA]) * error
    _, _, studentized = ratio_bounds(AMOUNTS, np.ones(items), ALPHA, 20_000, 0)
    assert studentized == pytest.approx(wanted.tolist(), abs=0.04)


def test_mean_bounds_are_the_farthest_and_seeded() -> None:
    found = mean_bounds(AMOUNTS.tolist(), WEIGHTS.tolist(), ALPHA, 1000, 5, reach=50.0)
    bounds = ratio_bounds(WEIGHTS * AMOUNTS, WEIGHTS, ALPHA, 1000, 5)
    assert found.value == pytest.approx(np.average(AMOUNTS, weights=WEIGHTS))
    assert (found.low, found.high) == (min(low for low, _ in bounds), max(high for _, high in bounds))
    assert found == mean_bounds(AMOUNTS, WEIGHTS, ALPHA, 1000, 5, reach=50.0)
    assert found != mean_bounds(AMOUNTS, WEIGHTS, ALPHA, 1000, 6, reach=50.0)


def test_equal_items_are_counted_with_the_same_result() -> None:
    changes = [-1.0] * 12 + [1.0] * 5 + [0.0] * 60
    _, bca, _ = ratio_bounds(np.array(changes), np.ones(77), ALPHA, 20_000, 0)
    wanted = bootstrap(
        (changes,), np.mean, confidence_level=0.9, n_resamples=20_000, method="BCa", rng=np.random.default_rng(7)
    ).confidence_interval
    assert bca == pytest.approx((wanted.low, wanted.high), abs=1 / 77 + 1e-9)  # one resampled item


@given(st.floats(0.1, 10), st.floats(0.1, 10))
@settings(deadline=None, max_examples=10)
def test_bounds_move_with_the_unit_of_values_and_not_with_that_of_weights(unit: float, heavier: float) -> None:
    one = mean_bounds(AMOUNTS, WEIGHTS, ALPHA, 300, 0, reach=50.0)
    other = mean_bounds(AMOUNTS * unit, WEIGHTS * heavier, ALPHA, 300, 0, reach=50.0 * unit)
    assert (other.value, other.low, other.high) == pytest.approx((one.value * unit, one.low * unit, one.high * unit))


def test_rare_large_losses_pass_less_often_than_with_bca() -> None:
    trials, mean, passed = 150, -0.1 * math.exp(0.5), np.zeros(2)
    draw = np.random.default_rng(0)
    for trial in range(trials):
        changes = -draw.lognormal(0.0, 1.0, 50) * (draw.random(50) < 0.1)
        _, bca, _ = ratio_bounds(changes, np.ones(50), ALPHA, 500, trial)
        passed += bca[0] > mean, mean_bounds(changes, np.ones(50), ALPHA, 500, trial, reach=20.0).low > mean
    assert passed[0] / trials > 0.1
    assert passed[1] / trials < 0.1


def test_amounts_without_any_difference_prove_something_by_their_number_only() -> None:
    few, many = (mean_bounds([0.0] * n, [1.0] * n, ALPHA, 200, 0, reach=2.0) for n in (10, 300))
    assert (few.low, few.high) == pytest.approx((-2 * unseen_share(10, ALPHA), 2 * unseen_share(10, ALPHA)))
    assert (many.value, many.low) == pytest.approx((0.0, -2 * (1 - 0.05 ** (1 / 300))))


def test_gains_alone_do_not_hide_the_unseen_loss() -> None:
    found = mean_bounds([0.0] * 11 + [0.5], [1.0] * 12, ALPHA, 500, 0, reach=1.0)
    unseen = unseen_share(12, ALPHA)
    assert found.low == pytest.approx((1 - unseen) * 0.5 / 12 - unseen)
    assert found.high == 1.0  # resamples without spread: nobody knows


@pytest.mark.parametrize("changes", [[-0.3], [-0.5, -0.5], [0.0, -1.0], [1e-12, 1e-12, 0.0]])
def test_a_handful_of_items_is_never_proof(changes: list[float]) -> None:
    found = mean_bounds(changes, [1.0] * len(changes), ALPHA, 300, 0, reach=1.0)
    assert -1.0 <= found.low < -0.5
    assert found.low <= found.value <= found.high <= 1.0
    with pytest.raises(ValueError, match="no items"):
        mean_bounds([], [], ALPHA, 300, 0, reach=1.0)


def test_retention_of_amounts_is_the_ratio_of_sums() -> None:
    before, after = np.abs(AMOUNTS) + 1, np.abs(AMOUNTS) + 0.8
    found = retention_bounds(before, after, WEIGHTS, ALPHA, 2000, 0)
    assert found is not None
    assert found.value == pytest.approx((WEIGHTS * after).sum() / (WEIGHTS * before).sum())
    assert found.low < found.value < found.high < 1.0
    assert retention_bounds([0.0] * 4, [1.0] * 4, [1.0] * 4, ALPHA, 200, 0) is None
    same = retention_bounds(before, before, WEIGHTS, ALPHA, 200, 0)
    assert same is not None
    assert (same.value, same.low, same.high) == pytest.approx((1.0, 1.0, 1.0))


def test_retention_of_answers_says_no_more_than_their_difference() -> None:
    baseline = [True] * 32 + [False] * 8
    same = retention_bounds(baseline, baseline, [1.0] * 40, ALPHA, 500, 0)
    exact = difference_bounds(baseline, baseline, ALPHA)
    assert same is not None
    assert (same.value, same.low, same.high) == pytest.approx((1.0, 1 + exact.low / 0.8, 1 + exact.high / 0.8))
    found = retention_bounds([True, False, False], [False, True, True], [1.0] * 3, ALPHA, 500, 0)
    assert found is not None  # some resamples have a baseline of zero
    assert math.isfinite(found.low)
    assert math.isfinite(found.high)
    assert found.low == 0.0


def test_scores() -> None:
    assert score_bounds([1.0] * 7 + [0.0] * 3, [1.0] * 10, binary=True) == wilson(7, 10)
    amounts = score_bounds(-AMOUNTS, WEIGHTS, binary=False)
    bounds = ratio_bounds(-AMOUNTS * WEIGHTS, WEIGHTS, 0.025, 2000, 0)
    assert amounts.value == pytest.approx(np.average(-AMOUNTS, weights=WEIGHTS))
    assert (amounts.low, amounts.high) == pytest.approx(
        (min(low for low, _ in bounds), max(high for _, high in bounds))
    )
    weighted = score_bounds([1.0] * 9 + [0.0], [1.0] * 9 + [3.0], binary=True)
    assert weighted.value == pytest.approx(0.75)
    assert 0.0 <= weighted.low < weighted.value < weighted.high <= 1.0
    one = score_bounds([0.4], [1.0], binary=False)
    assert (one.value, one.low, one.high) == pytest.approx((0.4, 0.4, 0.4))
    with pytest.raises(ValueError, match="no items"):
        score_bounds([], [], binary=False)


def test_groups_are_resampled_whole() -> None:
    means, weights = by_group([1.0, 0.0, 4.0, 1.0], [1.0, 3.0, 1.0, 1.0], ["a", "a", "b", "a"])
    assert (means, weights) == ([pytest.approx(0.4), 4.0], [5.0, 1.0])


def test_items_that_flip_together_prove_less() -> None:
    draw = np.random.default_rng(0)
    kind = np.repeat(draw.choice(3, size=60, p=[0.88, 0.06, 0.06]), 4)
    baseline, candidate = (kind != 2).tolist(), (kind != 1).tolist()
    exact = difference_bounds(baseline, candidate, ALPHA)
    once = [1.0] * 240
    alone = grouped_bounds(baseline, candidate, once, [str(n) for n in range(240)], ALPHA, 500, 0)
    grouped = grouped_bounds(baseline, candidate, once, [str(n // 4) for n in range(240)], ALPHA, 500, 0)
    assert alone == exact
    assert grouped.value == exact.value
    assert grouped.high - grouped.low > 1.5 * (exact.high - exact.low)  # the root of four, nearly


def test_bounds_of_groups_are_those_of_the_weighted_mean() -> None:
    baseline, candidate = [True] * 40, [False] * 8 + [True] * 32
    groups = ["large"] * 8 + [str(n) for n in range(32)]
    weights = [1 / 8] * 8 + [1.0] * 32
    found = grouped_bounds(baseline, candidate, weights, groups, ALPHA, 500, 0)
    assert found.value == pytest.approx(-1 / 33)
    assert -1.0 <= found.low < found.value < found.high <= 1.0
