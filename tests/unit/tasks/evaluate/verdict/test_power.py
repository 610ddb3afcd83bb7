"""Power analysis against enumeration and simulation, and the decisions that follow."""

import math

import numpy as np
import pytest
from scipy.stats import binom, multinomial, nct, t

from tasks.evaluate.verdict.exact_bounds import Interval, flip_bounds, lower_bound
from tasks.evaluate.verdict.margin_rule import decide
from tasks.evaluate.verdict.paired_tests import Flips, mcnemar_loss_p
from tasks.evaluate.verdict.power import (
    detectable_loss,
    detectable_mean,
    items_needed,
    mcnemar_power,
    minimum_detectable,
)

ALPHA, POWER = 0.05, 0.8


def tables(items: int, p_lost: float, p_gained: float) -> list[tuple[int, int, float]]:
    """Return (lost, gained, probability) of all outcomes that are not negligible."""
    cells = [(lost, gained, items - lost - gained) for lost in range(items + 1) for gained in range(items + 1 - lost)]
    chances = multinomial.pmf(cells, items, [p_lost, p_gained, 1 - p_lost - p_gained])
    return [(lost, gained, p) for (lost, gained, _), p in zip(cells, chances, strict=True) if p > 1e-5]


@pytest.mark.parametrize(("items", "discordance"), [(30, 0.1), (60, 0.06)])
def test_an_equal_candidate_passes_the_detectable_margin_with_the_asked_power(items: int, discordance: float) -> None:
    margin = minimum_detectable(items, discordance, ALPHA, POWER)
    lows = [
        (lower_bound(lost, gained, items, ALPHA), p)
        for lost, gained, p in tables(items, discordance / 2, discordance / 2)
    ]
    assert sum(p for low, p in lows if low > -margin) >= POWER
    assert sum(p for low, p in lows if low > -margin + 1e-3) < POWER


def test_detectable_margin_without_flips_is_what_the_items_can_miss() -> None:
    for items in (1, 40, 240):
        assert minimum_detectable(items, 0.0, ALPHA, POWER) == pytest.approx(-lower_bound(0, 0, items, ALPHA), abs=2e-5)


def test_detectable_margin_approaches_the_normal_one_from_above() -> None:
    for items, near in ((100, 1.2), (1000, 1.03)):
        normal = (1.6448536 + 0.8416212) * math.sqrt(0.06 / items)  # Nam 1997
        assert normal < minimum_detectable(items, 0.06, ALPHA, POWER) < near * normal
    assert minimum_detectable(2, 1.0, ALPHA, POWER) <= 1.0


def test_more_items_detect_less_and_more_flips_hide_more() -> None:
    by_items = [minimum_detectable(items, 0.1, ALPHA, POWER) for items in (25, 50, 100, 200)]
    by_flips = [minimum_detectable(100, flips, ALPHA, POWER) for flips in (0.0, 0.03, 0.1, 0.3, 1.0)]
    by_power = [minimum_detectable(100, 0.1, ALPHA, power) for power in (0.6, 0.8, 0.95)]
    assert by_items == sorted(by_items, reverse=True)
    assert by_flips == sorted(by_flips)
    assert by_power == sorted(by_power)


def test_harm_power_is_that_of_the_test() -> None:
    def p(lost: int, gained: int) -> float:
        return mcnemar_loss_p([True] * lost + [False] * gained + [True], [False] * lost + [True] * gained + [True])

    wanted = sum(chance for lost, gained, chance in tables(30, 0.3, 0.05) if p(lost, gained) <= ALPHA)
    assert mcnemar_power(30, 0.3, 0.05, ALPHA) == pytest.approx(wanted, abs=1e-3)
    assert mcnemar_power(30, 0.05, 0.05, ALPHA) <= ALPHA
    assert mcnemar_power(30, 0.0, 0.0, ALPHA) == 0.0


def test_detectable_loss_is_found_with_the_asked_power() -> None:
    loss = detectable_loss(48, 0.06, ALPHA, POWER)
    assert mcnemar_power(48, 0.03 + loss, 0.03, ALPHA) == pytest.approx(POWER, abs=1e-4)
    assert detectable_loss(48, 0.06, ALPHA / 10, POWER) > loss
    assert detectable_loss(480, 0.06, ALPHA, POWER) < loss
    assert detectable_loss(4, 0.06, ALPHA, POWER) == 1.0  # even four of four lost are no proof: p = 1/16
    assert detectable_loss(48, 1.0, ALPHA, POWER) == 1.0


def test_detectable_mean_is_students() -> None:
    margin = detectable_mean(2.0, 25, ALPHA, POWER)
    assert nct.sf(t.isf(ALPHA, 24), 24, margin / 2.0 * 5) == pytest.approx(POWER, abs=1e-4)
    assert detectable_mean(2.0, 25, ALPHA, POWER, reach=0.5) == 0.5
    assert detectable_mean(0.0, 25, ALPHA, POWER, reach=2.0) == pytest.approx(2.0 * (1 - ALPHA ** (1 / 25)))
    assert detectable_mean(2.0, 1.2, ALPHA, POWER) == math.inf
    assert detectable_mean(2.0, 1.2, ALPHA, POWER, reach=3.0) == 3.0


@pytest.mark.parametrize(
    ("low", "value", "high", "detectable", "answer"),
    [
        (-0.04, 0.0, 0.04, 0.1, "yes"),
        (-0.04, -0.02, -0.01, 0.04, "yes"),  # a loss, but within what is allowed
        (-0.05, 0.0, 0.04, 0.01, "unknown"),  # the bound must lie above, strictly
        (-0.2, 0.0, 0.2, 0.2, "unknown"),
        (-0.2, -0.1, 0.01, 0.2, "unknown"),  # looks bad, but is not shown
        (-0.2, -0.1, -0.06, 0.2, "no"),
        (-0.2, -0.1, -0.01, 0.2, "no"),
        (-0.09, -0.045, -0.001, 0.06, "unknown"),  # a loss, perhaps within what is allowed; more items could tell
        (-0.06, -0.04, -0.02, 0.04, "no"),  # a loss, where an equal candidate would have passed
        (-0.06, -0.01, 0.04, 0.04, "unknown"),  # the bad luck of an equal candidate is no proof of a loss
    ],
)
def test_answers(low: float, value: float, high: float, detectable: float, answer: str) -> None:
    assert decide(Interval(value, low, high), 0.05, detectable) == answer


def test_error_rates_of_the_answers_counted_over_every_table() -> None:
    items, margin, discordance = 40, 0.15, 0.06
    detectable = {flips: minimum_detectable(items, flips / items, ALPHA, POWER) for flips in range(items + 1)}

    def share(loss: float, wanted: str) -> float:
        return sum(
            p
            for lost, gained, p in tables(items, discordance / 2 + loss, discordance / 2)
            if decide(flip_bounds(Flips(lost, gained, items), ALPHA), margin, detectable[lost + gained]) == wanted
        )

    assert share(margin, "yes") <= ALPHA
    assert share(0.0, "no") <= ALPHA
    assert share(0.0, "yes") > 0.9
    assert share(2 * margin, "no") > 0.9
    assert share(0.0, "unknown") + share(0.0, "yes") + share(0.0, "no") == pytest.approx(1.0, abs=0.01)


def test_simulated_power_is_as_predicted() -> None:
    items, discordance, trials = 80, 0.1, 400
    draw, noise = np.random.default_rng(1), 3 * math.sqrt(0.16 / 400)
    margin, loss = (
        minimum_detectable(items, discordance, ALPHA, POWER),
        detectable_loss(items, discordance, ALPHA, POWER),
    )
    equal = draw.multinomial(items, [discordance / 2, discordance / 2, 1 - discordance], size=trials)
    passed = np.mean([lower_bound(int(lost), int(gained), items, ALPHA) > -margin for lost, gained, _ in equal])
    assert passed == pytest.approx(POWER, abs=noise + 0.03)  # 0.03: one table more or less
    worse = draw.multinomial(items, [discordance / 2 + loss, discordance / 2, 1 - discordance - loss], size=trials)
    found = np.mean([binom.sf(lost - 1, lost + gained, 0.5) <= ALPHA for lost, gained, _ in worse])
    assert found == pytest.approx(POWER, abs=noise)


@pytest.mark.parametrize("margin", [0.02, 0.05, 0.1])
def test_the_items_needed_decide_the_margin_and_a_tenth_fewer_do_not(margin: float) -> None:
    needed = items_needed(margin, 0.06, ALPHA, POWER)
    assert (
        minimum_detectable(needed, 0.06, ALPHA, POWER)
        <= margin
        < minimum_detectable(int(0.85 * needed), 0.06, ALPHA, POWER)
    )
