"""Choice of validation rows: whole phrasing groups, never parts of one."""

import math
import random
from collections.abc import Sequence

from tasks.shared.errors import DataError
from tasks.shared.formats.rows import Row


def split_groups(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows into training and validation without a phrasing group in both.

    A share above 0 keeps at least one group for validation.

    Raises DataError if too few rows remain to train on.
    """
    groups = sorted({row.group for row in rows})
    random.Random(seed).shuffle(groups)
    kept = set(groups[: max(1, math.floor(share * len(groups))) if share else 0])
    training = [row for row in rows if row.group not in kept]
    if len(training) < 2:
        raise DataError(
            "traces/train.jsonl",
            f"{len(rows)} rows in {len(groups)} phrasing groups",
            "at least two rows to train on",
            "more data, or distill validation=0",
        )
    return training, [row for row in rows if row.group in kept]
