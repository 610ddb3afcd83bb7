"""Cost arithmetic on measured figures; a quality point has a price only in a trade-off."""

from typing import Any

import pytest

from tasks.evaluate.verdict.cost import Prices, TokenPrices, compare_costs, cost_per_1000, machine_cost, token_cost
from tasks.shared.errors import ConfigError
from tasks.shared.formats.records import Figure

FIGURES = {
    "end_to_end_s": Figure(value=1.8, low=1.5, high=2.4, bounds="range of 3 repeats", unit="s", better="lower"),
    "end_to_end_s_batch_8": Figure(value=3.6, unit="s", better="lower"),
    "end_to_end_s (transformers)": Figure(value=9.0, unit="s", better="lower"),
    "prompt_tokens": Figure(value=50, unit="tokens"),
    "answer_tokens": Figure(value=30, unit="tokens"),
}


def test_a_thousand_answers_cost_their_machine_hours() -> None:
    assert machine_cost(3.6, 2.0) == pytest.approx(2.0), "1,000 answers of 3.6 s are an hour"
    found = cost_per_1000("student", FIGURES, Prices(machine_per_hour=2.0, currency="EUR"))
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1500 * 2 / 3600, 2400 * 2 / 3600))
    assert (found.unit, found.bounds, found.better) == ("EUR", "range of 3 repeats", "lower")


def test_answers_that_share_the_machine_share_its_price() -> None:
    found = cost_per_1000("student", FIGURES, Prices(machine_per_hour=2.0, batch=8))
    assert found is not None and found.value == pytest.approx(0.25) and found.low is None


def test_an_endpoint_is_paid_by_tokens_and_the_others_by_the_hour() -> None:
    prices = Prices(machine_per_hour=2.0, endpoints={"teacher": TokenPrices(input=2.0, output=10.0)})
    teacher, student = (cost_per_1000(model, FIGURES, prices) for model in ("teacher", "student"))
    assert teacher is not None and student is not None
    assert teacher.value == pytest.approx(0.1 + 0.3) == token_cost(50, 30, prices.endpoints["teacher"])
    assert student.value == pytest.approx(1.0)


@pytest.mark.parametrize("figures", [FIGURES, {}])
def test_without_a_price_or_a_time_nothing_is_stated(figures: Any) -> None:
    assert cost_per_1000("student", figures, Prices()) is None
    priced = Prices(machine_per_hour=1.0, endpoints={"teacher": TokenPrices(input=1.0)})
    for model in ("student", "teacher"):
        assert (cost_per_1000(model, figures, priced) is None) == (not figures)


def test_a_batch_size_that_was_not_timed_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of 1, 8"):
        cost_per_1000("student", FIGURES, Prices(machine_per_hour=1.0, batch=4))


def test_a_lost_point_has_its_price_and_so_has_a_gained_one() -> None:
    worse = compare_costs(cost=1.0, baseline_cost=4.0, quality=0.78, baseline_quality=0.80)
    assert (worse.saved, worse.points, worse.price_of_point) == pytest.approx((3.0, -2.0, 1.5))
    assert (worse.cost_per_point, worse.baseline_cost_per_point) == pytest.approx((1 / 78, 4 / 80))
    better = compare_costs(cost=4.0, baseline_cost=1.0, quality=0.80, baseline_quality=0.78)
    assert (better.saved, better.points, better.price_of_point) == pytest.approx((-3.0, 2.0, 1.5)), (
        "the same trade, the other way"
    )


@pytest.mark.parametrize(("cost", "quality"), [(1.0, 0.8), (1.0, 0.9), (5.0, 0.7), (5.0, 0.8), (4.0, 0.7)])
def test_where_nothing_is_traded_no_point_has_a_price(cost: float, quality: float) -> None:
    assert compare_costs(cost, 4.0, quality, 0.8).price_of_point is None


def test_at_no_quality_points_cost_is_not_divided() -> None:
    assert compare_costs(1.0, 4.0, 0.0, 0.8).cost_per_point is None
