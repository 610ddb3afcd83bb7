"""Prompts grouped by the beginning that they share, so that it is read once."""

from collections.abc import Sequence
from dataclasses import dataclass

Ids = Sequence[int]


@dataclass(frozen=True)
class Group:
    """Prompts with the same beginning.

    rows: their indices.  shared: number of tokens of the beginning; 0 for a prompt that is read whole.
    """

    rows: tuple[int, ...]
    shared: int = 0


def group_prompts(prompts: Sequence[Ids]) -> list[Group]:
    """Return groups that save the most tokens, and the prompts that are left over, each alone.

    prompts: token ids.  At least one token of each is left to read, since its logits begin the answer.
    """
    order = sorted(range(len(prompts)), key=lambda index: (list(prompts[index]), index))
    chosen = [prompts[index] for index in order]
    common = [shared_length(first, second) for first, second in zip(chosen, chosen[1:], strict=False)]
    limit = _best_limit(common)
    runs = _cut(common, limit) if limit else ((place, place + 1, 0) for place in range(len(order)))
    return [Group(tuple(order[first:last]), shared) for first, last, shared in runs]


def batch_groups(groups: Sequence[Group], prompts: Sequence[Ids], size: int) -> list[list[Group]]:
    """Return batches of at most `size` prompts with ends, or whole prompts, of similar length.

    A larger group is cut into parts.
    """
    parts = [
        Group(group.rows[start : start + size], group.shared)
        for group in groups
        for start in range(0, len(group.rows), size)
    ]

    def longest(part: Group) -> tuple[bool, int]:
        return bool(part.shared), max(len(prompts[row]) for row in part.rows) - part.shared

    found: list[list[Group]] = []
    count = size
    for part in sorted(parts, key=longest):
        if count + len(part.rows) > size:
            found.append([])
            count = 0
        found[-1].append(part)
        count += len(part.rows)
    return found


def split_batch(batch: Sequence[Group], prompts: Sequence[Ids]) -> list[Group]:
    """Return a batch in which every prompt has a beginning that is read first, or none has.

    None has if that reads no fewer tokens, padding included.
    A prompt alone is cut where the others' ends are no shorter, so that no padding is added for it.
    """
    lengths = [len(prompts[row]) for group in batch for row in group.rows]
    whole = [Group(group.rows) for group in batch]
    ends = [len(prompts[row]) - group.shared for group in batch if group.shared for row in group.rows]
    if not ends or min(lengths) < 2:
        return whole
    split = [
        group if group.shared else Group(group.rows, max(1, len(prompts[group.rows[0]]) - max(ends))) for group in batch
    ]
    read = len(split) * max(group.shared for group in split) + len(lengths) * max(ends)  # padding included
    return split if read < len(lengths) * max(lengths) else whole


def _best_limit(common: Sequence[int]) -> int:
    """Return the shared tokens from which on neighbors form a group; 0 if no group saves any.

    common: tokens that each prompt shares with the next one.
    """
    saved = {
        limit: sum((last - first - 1) * shared for first, last, shared in _cut(common, limit))
        for limit in sorted({length for length in common if length})
    }
    return max(saved, key=saved.__getitem__, default=0)


def _cut(common: Sequence[int], limit: int) -> list[tuple[int, int, int]]:
    """Return runs of neighbors that share at least `limit` tokens.

    Each is (first, behind the last, shared tokens), with 0 shared tokens for one alone.
    """
    found: list[tuple[int, int, int]] = []
    first = 0
    for place in range(1, len(common) + 2):
        if place > len(common) or common[place - 1] < limit:
            found.append((first, place, min(common[first : place - 1], default=0)))
            first = place
    return found


def shared_length(first: Ids, second: Ids) -> int:
    """Return how many tokens two prompts share, at most all but the last of the shorter one."""
    most = min(len(first), len(second)) - 1
    return next((place for place in range(max(0, most)) if first[place] != second[place]), max(0, most))
