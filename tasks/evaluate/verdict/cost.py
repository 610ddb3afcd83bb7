"""What answers cost, from prices and measured figures, and what a quality point costs."""

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.shared.errors import ConfigError
from tasks.shared.formats.records import Figure

Price = Annotated[float, Field(ge=0)]
SECONDS_PER_HOUR = 3600
ANSWERS = 1000
POINT = 0.01
"""A quality point: one per cent of a share."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TokenPrices:
    """What an endpoint asks for a million tokens."""

    input: Price = 0.0
    """Per million tokens of prompts."""
    output: Price = 0.0
    """Per million tokens of answers."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Prices:
    """What answers are paid with: a machine by the hour, or an endpoint by tokens.  All zero: no cost is stated."""

    machine_per_hour: Price = 0.0
    """Price of one hour of the machine that the models were timed on."""
    batch: Annotated[int, Field(ge=1)] = 1
    """Answers that the machine works at together: 1, or a batch size that was timed."""
    endpoints: dict[str, TokenPrices] = Field(default_factory=dict)
    """By model's name: prices of a model that is reached at an endpoint; the machine's price is then not asked for it."""
    currency: str = "USD"
    """Unit of all prices."""


def machine_cost(seconds: float, per_hour: float) -> float:
    """Cost of 1,000 answers, each of which takes so many seconds of the machine."""
    return ANSWERS * seconds * per_hour / SECONDS_PER_HOUR


def token_cost(prompt_tokens: float, answer_tokens: float, prices: TokenPrices) -> float:
    """Cost of 1,000 answers of an endpoint."""
    return ANSWERS * (prompt_tokens * prices.input + answer_tokens * prices.output) / 1e6


def cost_per_1000(model: str, figures: Mapping[str, Figure], prices: Prices) -> Figure | None:
    """Cost of 1,000 answers like the timed one, with the range of its time; None without a price, or for a model that was not timed.

    figures: of tasks/evaluate/runtime.py.  Raises ConfigError for a batch size that was not timed.
    """
    if model in prices.endpoints:
        asked, said = figures.get("prompt_tokens"), figures.get("answer_tokens")
        if asked is None or said is None:
            return None
        return Figure(
            value=token_cost(asked.value, said.value, prices.endpoints[model]), unit=prices.currency, better="lower"
        )
    if not prices.machine_per_hour or "end_to_end_s" not in figures:
        return None
    name = "end_to_end_s" if prices.batch == 1 else f"end_to_end_s_batch_{prices.batch}"
    if name not in figures:
        timed = [size for known in figures if (size := known.removeprefix("end_to_end_s_batch_")).isdigit()]
        raise ConfigError(
            "prices.batch", f"{prices.batch}, which was not timed", f"one of 1, {', '.join(timed)}" if timed else "1",
            f"add {prices.batch} to batch_sizes of the step that timed the models",
        )  # fmt: skip
    taken = figures[name]

    def cost(seconds: float) -> float:
        return machine_cost(seconds / prices.batch, prices.machine_per_hour)

    return Figure(
        value=cost(taken.value), low=None if taken.low is None else cost(taken.low), high=None if taken.high is None else cost(taken.high),
        bounds=taken.bounds, unit=prices.currency, better="lower",
    )  # fmt: skip


@plain_dataclass(frozen=True)
class PointCost:
    """Cost and quality of a candidate beside the baseline's.

    saved: per 1,000 answers; below zero it costs more.  points: quality points in favor of the candidate, below zero it lost some.
    price_of_point: what each lost point saves, or each gained point costs, above zero.  None where a candidate saves and loses
    nothing, or costs more and gains nothing: nothing is traded then.
    cost_per_point, baseline_cost_per_point: cost of 1,000 answers over all of a model's quality points; None at quality 0.
    """

    saved: float
    points: float
    price_of_point: float | None
    cost_per_point: float | None
    baseline_cost_per_point: float | None


def compare_costs(cost: float, baseline_cost: float, quality: float, baseline_quality: float) -> PointCost:
    """What each quality point costs.  Costs are of 1,000 answers; qualities are shares, higher is better."""
    saved, points = baseline_cost - cost, (quality - baseline_quality) / POINT
    return PointCost(
        saved=saved, points=points, price_of_point=-saved / points if saved * points < 0 else None,
        cost_per_point=per_point(cost, quality), baseline_cost_per_point=per_point(baseline_cost, baseline_quality),
    )  # fmt: skip


def per_point(cost: float, quality: float) -> float | None:
    """Cost of 1,000 answers over the quality points that they have; None at quality 0."""
    return cost / (quality / POINT) if quality > 0 else None
