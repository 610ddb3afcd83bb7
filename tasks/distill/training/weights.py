"""How much rows count, by who answered them."""

from collections.abc import Sequence

from tasks.distill.training.encoding import Encoded
from tasks.shared.rows import Row


def weigh(encoded: Sequence[Encoded], rows: Sequence[Row], teacher: float, gold: float) -> list[Encoded]:
    """The rows with `weights`, one number per token; unchanged where every token counts once.

    encoded: one for each of `rows`, in order.  teacher, gold: the weight of a token by its row's source.
    """
    if teacher == gold == 1:
        return list(encoded)
    by_source = {"teacher": teacher, "gold": gold}
    return [
        {**one, "weights": [by_source[row.source]] * len(one["input_ids"])} for one, row in zip(encoded, rows, strict=True)
    ]
