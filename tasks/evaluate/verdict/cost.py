"""Cost of answers from prices and measured times, and cost of a quality point."""

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
"""A quality point: 0.01 of a share."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TokenPrices:
    """Endpoint prices per million tokens."""

    input: Price = 0.0
    """Per million tokens of prompts."""
    output: Price = 0.0
    """Per million tokens of answers."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Prices:
    """Prices of answers: a machine by the hour, or an endpoint by tokens.

    All zero: no cost is shown.
    """

    machine_per_hour: Price = 0.0
    """Price per hour of the machine that the models were timed on."""
    batch: Annotated[int, Field(ge=1)] = 1
    """Answers generated together: 1, or a batch size that was timed."""
    endpoints: dict[str, TokenPrices] = Field(default_factory=dict)
    """Token prices of models served by an endpoint, by model name; the machine's price does not apply to them."""
    currency: str = "USD"
    """Unit of all prices."""


def machine_cost(seconds: float, per_hour: float) -> float:
    """Return the cost of 1,000 answers that each take `seconds` of machine time."""
    return ANSWERS * seconds * per_hour / SECONDS_PER_HOUR


def token_cost(prompt_tokens: float, answer_tokens: float, prices: TokenPrices) -> float:
    """Return the cost of 1,000 answers from an endpoint."""
    return ANSWERS * (prompt_tokens * prices.input + answer_tokens * prices.output) / 1e6


def cost_per_1000(model: str, figures: Mapping[str, Figure], prices: Prices) -> Figure | None:
    """Return the cost of 1,000 answers like the timed one, with the range of its latency.

    figures: from tasks/evaluate/runtime.py.  None without a price, or for a model that was not timed.
    Raises ConfigError for a batch size that was not timed.
    """
    if model in prices.endpoints:
        prompt, answer = figures.get("prompt_tokens"), figures.get("answer_tokens")
        if prompt is None or answer is None:
            return None
        return Figure(
            value=token_cost(prompt.value, answer.value, prices.endpoints[model]), unit=prices.currency, better="lower"
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
    latency = figures[name]

    def cost(seconds: float) -> float:
        return machine_cost(seconds / prices.batch, prices.machine_per_hour)

    return Figure(
        value=cost(latency.value), low=None if latency.low is None else cost(latency.low), high=None if latency.high is None else cost(latency.high),
        bounds=latency.bounds, unit=prices.currency, better="lower",
    )  # fmt: skip


@plain_dataclass(frozen=True)
class PointCost:
    """Cost and quality of a candidate relative to the baseline.

    saved: per 1,000 answers; negative if the candidate costs more.  points: quality points; negative if quality is lost.
    price_of_point: amount saved per point lost, or paid per point gained; None where there is no trade-off (cheaper without loss, or
    more expensive without gain).
    cost_per_point, baseline_cost_per_point: cost of 1,000 answers divided by a model's quality points; None at quality 0.
    """

    saved: float
    points: float
    price_of_point: float | None
    cost_per_point: float | None
    baseline_cost_per_point: float | None


def compare_costs(cost: float, baseline_cost: float, quality: float, baseline_quality: float) -> PointCost:
    """Return the cost of a quality point.

    cost, baseline_cost: per 1,000 answers.  quality, baseline_quality: shares, higher is better.
    """
    saved, points = baseline_cost - cost, (quality - baseline_quality) / POINT
    return PointCost(
        saved=saved, points=points, price_of_point=-saved / points if saved * points < 0 else None,
        cost_per_point=per_point(cost, quality), baseline_cost_per_point=per_point(baseline_cost, baseline_quality),
    )  # fmt: skip


def per_point(cost: float, quality: float) -> float | None:
    """Return the cost of 1,000 answers per quality point; None at quality 0."""
    return cost / (quality / POINT) if quality > 0 else None
