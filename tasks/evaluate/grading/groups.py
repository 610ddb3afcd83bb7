"""Weights of dependent test items, such as wordings of one question: each group counts once."""

from collections import Counter
from collections.abc import Mapping


def once_per_group(groups: Mapping[str, str]) -> dict[str, float]:
    """Return a weight per item: 1 / size of its group.

    groups: by item id; empty for an item that stands alone.
    """
    sizes = Counter(group for group in groups.values() if group)
    return {name: 1.0 / sizes[group] if group else 1.0 for name, group in groups.items()}
