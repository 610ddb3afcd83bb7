"""Figures of a verdict for metrics.json and the table; measures that count as quality."""

from collections.abc import Mapping

from tasks.shared.formats.verdict import Gate, Verdict
from tasks.shared.technique import Metrics


def nested_metrics(verdict: Verdict) -> dict[str, dict[str, float]]:
    """Return figures by model, for metrics.json."""
    return {
        name: {measure: value.value for measure, value in model.scores.items()}
        | {"size_bytes": float(model.size_bytes)}
        | {figure: value.value for figure, value in model.figures.items()}
        for name, model in verdict.models.items()
    }


def flat_metrics(verdict: Verdict) -> Metrics:
    """Return table figures: the decision, and each model's deciding scores, size and speed."""
    shown = {*verdict.margin, "size_bytes", "tokens_per_second"}
    flat: Metrics = {"decision": verdict.decision, "shipped": verdict.shipped or "none"}
    for name, figures in nested_metrics(verdict).items():
        flat |= {f"{name}.{key}": value for key, value in figures.items() if key in shown}
    return flat


def quality_measures(gates: Mapping[str, Gate]) -> list[str]:
    """Return the measures averaged as quality: deciding shares where higher is better."""
    return [
        name
        for name, gate in gates.items()
        if gate.margin is not None and gate.measure.unit == "share" and gate.measure.better == "higher"
    ]
