"""Exact bounds against published figures, enumeration, and simulated candidates."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, multinomial, norm

from tasks.evaluate.verdict.exact_bounds import (
    NUISANCE,
    difference_bounds,
    flip_bounds,
    lower_bound,
    p_value_function,
    score_bound,
    score_statistic,
)
from tasks.evaluate.verdict.paired_tests import Flips, count_flips, mcnemar_p

ALPHA = 0.05


def test_tangos_published_example() -> None:
    # Tango 1998, section 5: 44 pairs, one lost, none gained, margin 0.1: Z = 1.709; 90 % interval -0.096 to 0.037
    assert float(score_statistic(1, 0, 44, -0.1)) == pytest.approx(1.709, abs=5e-4)
    assert float(score_bound(1, 0, 44, ALPHA)) == pytest.approx(-0.096, abs=5e-4)
    assert -float(score_bound(0, 1, 44, ALPHA)) == pytest.approx(0.037, abs=5e-4)


def test_score_interval_of_a_published_table() -> None:
    # Fagerland, Lydersen and Laake 2017, chapter 8: 161 pairs, 6 gained, 16 lost: -0.0621 (95 % -0.1240 to -0.0054)
    assert float(score_bound(16, 6, 161, 0.025)) == pytest.approx(-0.1240, abs=5e-5)
    assert -float(score_bound(6, 16, 161, 0.025)) == pytest.approx(-0.0054, abs=5e-5)


@pytest.mark.parametrize(("lost", "gained", "items"), [(2, 1, 10), (0, 0, 10), (0, 3, 10), (5, 2, 14), (14, 0, 14)])
def test_the_bound_is_where_all_tables_as_good_have_probability_alpha(lost: int, gained: int, items: int) -> None:
    tables = [(a, b) for a in range(items + 1) for b in range(items + 1 - a)]
    order = float(score_bound(lost, gained, items, ALPHA))
    good = np.array(
        [(a, b, items - a - b) for a, b in tables if float(score_bound(a, b, items, ALPHA)) >= order - 1e-9]
    )

    flipped, price = lost + gained, ALPHA / NUISANCE
    least = beta.ppf(price / 2, flipped, items - flipped + 1) if flipped else 0.0
    most = beta.isf(price / 2, flipped + 1, items - flipped) if flipped < items else 1.0

    def worst(difference: float) -> float:
        sums = np.linspace(max(abs(difference), least), most, 400)
        return price + max(
            multinomial.pmf(good, items, [(s - difference) / 2, (s + difference) / 2, 1 - s]).sum() for s in sums
        )

    found = lower_bound(lost, gained, items, ALPHA)
    if found == -1.0:
        assert lost == items
        return
    assert worst(found) == pytest.approx(ALPHA, abs=1e-4)
    assert worst(found) <= ALPHA
    assert p_value_function(order, flipped, items, ALPHA)(found) == pytest.approx(ALPHA, abs=1e-4)


@cache
def most_lost(items: int, margin: float, flips: int) -> int:
    """Most losses among the flips for a bound above -margin; -1 for none."""
    fits, fails = -1, flips + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if lower_bound(middle, flips - middle, items, ALPHA) > -margin else (fits, middle)
    return fits


def pass_rate(items: int, margin: float, p_lost: float, p_gained: float) -> float:
    """Exact probability of a bound above -margin."""
    flips = np.arange(items + 1)
    limits = np.array([most_lost(items, margin, int(count)) for count in flips])
    return float(
        (binom.pmf(flips, items, p_lost + p_gained) * binom.cdf(limits, flips, p_lost / (p_lost + p_gained))).sum()
    )


@pytest.mark.parametrize(("items", "margin"), [(12, 0.1), (12, 0.3), (30, 0.05), (30, 0.1)])
def test_false_ship_rate_at_the_margin_is_at_most_alpha_whatever_the_discordance(items: int, margin: float) -> None:
    rates = [pass_rate(items, margin, (d + margin) / 2, (d - margin) / 2) for d in np.linspace(margin, 1.0, 300)]
    assert 0.02 < max(rates) <= ALPHA


def test_the_score_bound_alone_would_pass_too_many() -> None:
    tables = [(lost, gained) for lost in range(31) for gained in range(31 - lost)]
    chances = {table: multinomial.pmf((*table, 30 - sum(table)), 30, [0.55, 0.45, 0.0]) for table in tables}
    kind = {name: sum(chances[t] for t in tables if bound(*t) > -0.1) for name, bound in {
        "score": lambda lost, gained: float(score_bound(lost, gained, 30, ALPHA)),
        "exact": lambda lost, gained: -0.1 + (most_lost(30, 0.1, lost + gained) >= lost) - 0.5,
    }.items()}  # fmt: skip
    assert kind["score"] > 0.07
    assert kind["exact"] <= ALPHA


def test_fewer_than_58_items_without_a_flip_are_no_proof_of_five_points() -> None:
    assert flip_bounds(Flips(0, 0, 40), ALPHA).low < -0.05
    for items in (10, 40, 57, 59, 300):
        found = flip_bounds(Flips(0, 0, items), ALPHA)
        assert found.high == -found.low
        assert found.low == pytest.approx(-(1 - ALPHA ** (1 / items)), rel=2e-3)  # what n items can miss
        assert (found.low > -0.05) == (items > 58)


@pytest.mark.parametrize("items", [1, 2, 30])
def test_bounds_stay_within_what_is_possible(items: int) -> None:
    lost = difference_bounds([True] * items, [False] * items, ALPHA)
    assert (lost.value, lost.low) == (-1.0, -1.0)
    assert lost.high == pytest.approx(-lower_bound(0, items, items, ALPHA))
    assert flip_bounds(Flips(0, items, items), ALPHA).high == 1.0


@given(st.integers(1, 60), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, max_examples=12)
def test_swapping_the_models_negates_the_interval(items: int, share: float, lost_share: float) -> None:
    flips = round(share * items)
    lost = round(lost_share * flips)
    one, other = (
        flip_bounds(Flips(lost, flips - lost, items), ALPHA),
        flip_bounds(Flips(flips - lost, lost, items), ALPHA),
    )
    assert (one.value, one.low, one.high) == (-other.value, -other.high, -other.low)
    assert -1.0 <= one.low <= one.value <= one.high <= 1.0


@given(st.integers(3, 60), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, max_examples=12)
def test_a_loss_more_lowers_the_bound_and_agreeing_items_raise_it(items: int, share: float, lost_share: float) -> None:
    flips = round(share * (items - 2))
    lost = round(lost_share * flips)
    here = lower_bound(lost, flips - lost, items, ALPHA)
    assert lower_bound(lost + 1, flips - lost, items, ALPHA) < here or here == -1.0
    assert lower_bound(lost, flips - lost + 1, items, ALPHA) > here or here == -1.0
    assert lower_bound(lost, flips - lost, items, ALPHA / 5) <= here
    assert lower_bound(lost, flips - lost, 2 * items, ALPHA) > here or here > 0.0


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter|longer"):
        difference_bounds([True], [True, False], ALPHA)


def simulated_lows(items: int, p_lost: float, p_gained: float, trials: int) -> np.ndarray:
    """Lower bounds of candidates, (trials,)."""
    drawn = np.random.default_rng(3).multinomial(items, [p_lost, p_gained, 1 - p_lost - p_gained], size=trials)
    return np.array([lower_bound(int(lost), int(gained), items, ALPHA) for lost, gained, _ in drawn])


def test_simulated_candidates_with_a_known_drop() -> None:
    trials, margin = 400, 0.08
    noise = 3 * math.sqrt(0.05 * 0.95 / trials)
    assert (simulated_lows(100, 0.02 + margin, 0.02, trials) > -margin).mean() <= ALPHA + noise
    equal = simulated_lows(100, 0.02, 0.02, trials)
    assert (equal > 0.0).mean() <= ALPHA + noise
    # Nam (1997), normal approximation of the power
    assert (equal > -margin).mean() == pytest.approx(norm.cdf(margin / 0.02 - norm.isf(ALPHA)), abs=0.05)


def test_a_candidate_with_shuffled_answers_is_as_accurate_and_does_not_pass() -> None:
    draw = np.random.default_rng(0)
    baseline = [True] * 168 + [False] * 72
    for _ in range(5):
        candidate = draw.permutation(baseline).tolist()
        found = difference_bounds(baseline, candidate, ALPHA)
        assert found.value == 0.0
        assert found.low < -0.05  # 42 % of the answers flip; with 6 % the same test passes
        assert mcnemar_p(count_flips(baseline, candidate)) == 1.0
    assert flip_bounds(Flips(7, 7, 240), ALPHA).low > -0.05
