"""Paired tests against scipy, statsmodels, and exhaustive sign patterns."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from tasks.evaluate.verdict.paired_tests import (
    Flips,
    count_flips,
    effect_size,
    holm,
    mcnemar_loss_p,
    mcnemar_p,
    sign_flip_loss_p,
    sign_flip_p,
    weighted_spread,
)

counts = st.integers(0, 30)


def pairs(both: int, lost: int, gained: int, neither: int) -> tuple[list[bool], list[bool]]:
    cells = [(True, True)] * both + [(True, False)] * lost + [(False, True)] * gained + [(False, False)] * neither
    return [b for b, _ in cells], [c for _, c in cells]


def test_flips_count_both_directions() -> None:
    assert count_flips(*pairs(5, 3, 2, 1)) == Flips(3, 2, 11)
    assert count_flips(*pairs(5, 3, 2, 1)).rate == pytest.approx(5 / 11)
    baseline, candidate = pairs(5, 3, 2, 1)
    assert count_flips(np.array(baseline), np.array(candidate, float)) == Flips(3, 2, 11)


def test_pairs_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="no items"):
        count_flips([], [])
    with pytest.raises(ValueError, match="shorter|longer"):
        count_flips([True], [True, False])


@given(counts, counts)
@settings(deadline=None, max_examples=30)
def test_mcnemar_is_the_binomial_test_of_the_flips(lost: int, gained: int) -> None:
    wanted = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar_p(Flips(lost, gained, lost + gained + 5)) == pytest.approx(wanted)
    assert mcnemar_p(Flips(gained, lost, lost + gained + 5)) == pytest.approx(wanted)


def test_mcnemar_of_a_published_table() -> None:
    # Complete response before and after consolidation therapy: Fagerland, Lydersen and Laake 2017, chapter 8
    assert mcnemar_p(Flips(to_wrong=16, to_right=6, items=161)) == pytest.approx(0.052479, abs=1e-6)
    assert mcnemar([[59, 6], [16, 80]], exact=True).pvalue == pytest.approx(0.052479, abs=1e-6)


@given(counts, counts)
@settings(deadline=None, max_examples=30)
def test_harm_is_the_one_sided_binomial_test(lost: int, gained: int) -> None:
    wanted = binomtest(lost, lost + gained, alternative="greater").pvalue if lost + gained else 1.0
    assert mcnemar_loss_p(*pairs(3, lost, gained, 2)) == pytest.approx(wanted)


def test_identical_models_have_p_one_everywhere() -> None:
    same = [True, False, True]
    assert (mcnemar_p(count_flips(same, same)), mcnemar_loss_p(same, same)) == (1.0, 1.0)
    assert sign_flip_p([0.0] * 5, [1.0] * 5, 200, 0) == 1.0
    assert sign_flip_loss_p([0.0] * 5, [1.0] * 5, 200, 0) == 1.0


def test_few_differences_are_flipped_in_every_way() -> None:
    differences, weights = [-0.4, 0.1, -0.3, 0.0, -0.2], [1.0, 2.0, 1.0, 5.0, 3.0]
    moved = np.array(differences) * weights
    sums = np.array(
        [sum(s * m for s, m in zip(signs, moved, strict=True)) for signs in itertools.product((1, -1), repeat=5)]
    )
    two_sided, below = (np.abs(sums) >= abs(moved.sum()) - 1e-12).mean(), (sums <= moved.sum() + 1e-12).mean()
    assert sign_flip_p(differences, weights, 1000, 0) == pytest.approx(two_sided)
    assert sign_flip_loss_p(differences, weights, 1000, 0) == pytest.approx(below)


def test_one_difference_has_two_signs() -> None:
    assert sign_flip_p([0.0, -0.4], [1.0, 1.0], 100, 0) == 1.0
    assert sign_flip_loss_p([0.0, -0.4], [1.0, 1.0], 100, 0) == 0.5
    assert sign_flip_loss_p([0.0, 0.4], [1.0, 1.0], 100, 0) == 1.0


def test_many_differences_are_scipys_permutation_test() -> None:
    differences = np.random.default_rng(0).normal(-0.2, 1.0, 80)
    wanted = permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(5)
    ).pvalue
    found = sign_flip_p(differences.tolist(), [1.0] * 80, 20_000, 1)
    assert found == pytest.approx(wanted, abs=0.015)
    assert found == sign_flip_p(differences.tolist(), [1.0] * 80, 20_000, 1)  # seeded
    assert sign_flip_loss_p(differences.tolist(), [1.0] * 80, 20_000, 1) == pytest.approx(found / 2, abs=0.01)


@given(st.lists(st.floats(0, 1), max_size=8))
@settings(deadline=None, max_examples=8)
def test_holm_is_statsmodels(p_values: list[float]) -> None:
    found = holm(p_values)
    assert found == pytest.approx(multipletests(p_values, method="holm")[1].tolist() if p_values else [])
    assert all(low <= high <= 1.0 for low, high in zip(p_values, found, strict=True))


def test_effect_sizes_favor_the_candidate_above_zero() -> None:
    assert effect_size([-1, -1, 1, 0, 0], [1.0] * 5, binary=True) == pytest.approx(1 / 3 - 1 / 2)
    assert effect_size([1, 1], [1.0] * 2, binary=True) == 0.5
    assert effect_size([0, 0], [1.0] * 2, binary=True) == 0.0
    amounts = [0.3, -0.1, 0.2, 0.5]
    assert effect_size(amounts, [1.0] * 4, binary=False) == pytest.approx(np.mean(amounts) / np.std(amounts, ddof=1))
    assert effect_size([0.0, 0.0], [1.0] * 2, binary=False) == 0.0


def test_spread_is_that_of_equally_weighted_items() -> None:
    values = [0.3, -0.1, 0.2, 0.5]
    found = weighted_spread(values, [2.0] * 4)
    assert (found.deviation, found.items) == pytest.approx((np.std(values, ddof=1), 4.0))
    assert weighted_spread([0.3], [1.0]).deviation == 0.0
    assert weighted_spread(values, [100.0, 1.0, 1.0, 1.0]).items == pytest.approx(1.06, abs=0.01)  # one item counts
