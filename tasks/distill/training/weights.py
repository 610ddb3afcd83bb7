"""Weights of rows by the origin of their answer."""

from collections.abc import Sequence

from tasks.distill.training.options import Weighed
from tasks.distill.training.settings import Training
from tasks.shared.formats.rows import Row
from tasks.shared.model.encoding import Encoded


def weigh(encoded: Sequence[Encoded], rows: Sequence[Row], settings: Training) -> list[Encoded]:
    """Add `weights`, one number per token, to the rows; unchanged if all weights are 1.

    encoded: the encoded `rows`, in their order.
    """
    if not isinstance(settings, Weighed) or settings.teacher_weight == settings.gold_weight == 1:
        return list(encoded)
    by_origin = {"teacher": settings.teacher_weight}
    return [
        {**one, "weights": [by_origin.get(row.origin, settings.gold_weight)] * len(one["input_ids"])}
        for one, row in zip(encoded, rows, strict=True)
    ]
