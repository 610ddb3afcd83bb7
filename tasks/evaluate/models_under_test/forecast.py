"""Forecasts of steps that measure one model after the other."""

from tasks.shared.forecast import (
    ANSWER_TOKENS,
    GENERATION_COST,
    START_S,
    Forecast,
    Workload,
    forecast_reading,
)


def answered_tokens(work: Workload) -> int:
    """Return the cost of a prompt and its answer, in tokens read."""
    return work.rows.tokens + GENERATION_COST * ANSWER_TOKENS


def forecast_evaluation(
    work: Workload, tokens: float, dtype: str = "float32", resident: float = 0.0, loads: int = 1
) -> Forecast:
    """Forecast a step in which every model reads so many tokens, alone in memory.

    resident: parameters of a model that stays in memory.
    loads: how often each model is loaded.
    """
    models = work.models
    seconds = sum(loads * START_S + work.reading(size, tokens) for size in models)
    largest = max((size.parameters for size in models), default=0.0)
    return forecast_reading(work, seconds, largest + resident, dtype=dtype)
