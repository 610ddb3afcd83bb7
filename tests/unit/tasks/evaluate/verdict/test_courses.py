"""Error rates of the adaptive test under any number of looks, counted exactly and by simulation."""

import itertools
import math

import numpy as np
import pytest

from tasks.evaluate.verdict.betting import log_evidence_of, looks, margin_bets
from tasks.evaluate.verdict.courses import Rules, decided, follow, items_needed, smallest_margin

RULES = Rules(margin=0.05, planned=0.06)


def test_the_course_equals_all_sequences() -> None:
    rules, few = Rules(margin=0.3, planned=0.3, alpha=0.3), 7
    yes = no = 0.0
    for path in itertools.product((-1, 0, 1), repeat=few):
        chance = math.prod({-1: 0.2, 1: 0.3, 0: 0.5}[gain] for gain in path)
        for items in looks(few, 2):
            lost, gained = path[:items].count(-1), path[:items].count(1)
            shown, refuted = (bool(found) for found in decided(np.array(lost), np.array(gained), items, rules))
            if shown or refuted:
                yes, no = yes + chance * shown, no + chance * refuted
                break
    last = list(follow(rules, 0.2, 0.3, few, batch=2))[-1]
    assert (last.yes, last.no) == pytest.approx((yes, no), abs=1e-8)
    assert yes > 0.1 and no > 0.005


@pytest.mark.parametrize("flips", [0.05, 0.11, 0.3])
def test_a_loss_of_the_margin_ships_in_five_percent_at_most_after_94_looks(flips: float) -> None:
    last = list(follow(RULES, (flips + 0.05) / 2, (flips - 0.05) / 2, 1500))[-1]
    assert 0.01 < last.yes <= 0.05


def test_an_equal_candidate_passes_sooner_and_is_hardly_ever_refused() -> None:
    course = list(follow(RULES, 0.03, 0.03, 800))
    passed = next(look.items for look in course if look.yes >= 0.8)
    assert passed == 304 and course[-1].no <= 0.02
    assert items_needed(RULES, 0.8) == pytest.approx(passed, rel=0.15), "planned with fewer looks"
    assert smallest_margin(304, 0.06, 0.06, 0.05, 0.8) == pytest.approx(0.05, rel=0.1)


def test_a_bad_candidate_is_refused_after_few_items() -> None:
    asked, before, open_ = 0.0, 0, 1.0
    for look in follow(RULES, 0.23, 0.03, 496):
        asked, before, open_ = asked + open_ * (look.items - before), look.items, 1.0 - look.yes - look.no
    assert asked < 0.25 * 297, "the fixed test asks 297 items for 95 % power"


def test_groups_and_rare_large_losses_do_not_ship_too_often() -> None:
    """A loss of the margin: groups of four that flip together, and amounts whose loss is rare and large; looks every 16 units."""
    draw, trials, units = np.random.default_rng(0), 400, 400
    bets = margin_bets(0.05, 0.06)
    together = draw.choice([-1.0, 1.0, 0.0], size=(trials, units), p=[0.075, 0.025, 0.9])
    rare = np.where(draw.random((trials, units)) < 0.0625, -1.0, draw.uniform(0.0, 0.0267, (trials, units)))
    for gains in (together, rare):
        assert gains.mean() == pytest.approx(-0.05, abs=0.003)
        at = np.array(list(looks(units, 16))) - 1
        shipped = [bool((log_evidence_of(row, np.ones(units), -0.05, bets)[at] >= math.log(20)).any()) for row in gains]
        assert sum(shipped) / trials <= 0.05
