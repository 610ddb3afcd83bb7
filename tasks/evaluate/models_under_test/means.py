"""Mean values that an evaluation step shows in the run's table."""

from collections.abc import Sequence
from statistics import fmean

from tasks.evaluate.models_under_test.model_under_test import ModelUnderTest
from tasks.shared.formats.scores import ItemScore


def mean_values(items: Sequence[ItemScore], models: Sequence[ModelUnderTest]) -> dict[str, float]:
    """Return weighted means by "model.measure" for the baseline and the evaluated candidates."""
    names = [model.name for model in models if model.role in ("baseline", "candidate")]
    found: dict[str, list[tuple[float, float]]] = {}
    for item in items:
        for name in names:
            if name in item.values:
                found.setdefault(f"{name}.{item.measure}", []).append((item.values[name], item.weight))
    return {
        name: round(fmean((value for value, _ in pairs), (weight for _, weight in pairs)), 4)
        for name, pairs in found.items()
    }
