"""Choice of a type per group of tensors: the least total loss within a budget of bytes."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import TechniqueError

if TYPE_CHECKING:
    import numpy as np

Sizes = Mapping[str, Mapping[str, int]]
"""Bytes by group and type."""
Losses = Mapping[str, Mapping[str, float]]
"""Loss by group and type; losses of groups add up."""


def check_budget(sizes: Sizes, budget: int, weights: int) -> None:
    """Raise TechniqueError if even the smallest type of every group exceeds the budget.

    weights: of all groups.
    """
    smallest = sum(min(options.values()) for options in sizes.values())
    if smallest > budget:
        least = smallest * 8 / weights
        raise TechniqueError(
            "bits",
            f"{budget:,} bytes ({budget * 8 / weights:.2f} bits per weight) for all matrices, whose smallest types take {smallest:,}",
            f"{smallest:,} bytes or more: {least:.2f} bits per weight",
            f"bits={-(-least * 100 // 1) / 100:.2f}, or a smaller type in `types` whose blocks fill the rows",
        )


def choose_types(sizes: Sizes, losses: Losses, budget: int) -> dict[str, str]:
    """Return the type of each group with the least total loss whose bytes fit the budget.

    Exact: group by group, every partial choice is kept that no other one beats in bytes and loss, and that the smallest types of the
    other groups can complete.  Of choices with the same loss, the smallest is taken.  The smallest types must fit (`check_budget`).

    Source: Nemhauser and Ullmann 1969, Management Science 15(9), 494-505.
    """
    import numpy as np

    taken, lost = np.zeros(1, np.int64), np.zeros(1)
    left = sum(min(options.values()) for options in sizes.values())
    trail: list[tuple[list[str], np.ndarray[Any, Any]]] = []
    for group, options in sizes.items():
        left -= min(options.values())
        names = list(options)
        total = (taken[:, None] + np.array([options[name] for name in names])).ravel()
        loss = (lost[:, None] + np.array([losses[group][name] for name in names])).ravel()
        kept = undominated(total, loss, budget - left)
        taken, lost = total[kept], loss[kept]
        trail.append((names, kept))
    chosen: dict[str, str] = {}
    place = len(taken) - 1  # losses fall as bytes grow
    for group, (names, kept) in reversed(list(zip(sizes, trail, strict=True))):
        place, option = divmod(int(kept[place]), len(names))
        chosen[group] = names[option]
    return {group: chosen[group] for group in sizes}


def undominated(total: "np.ndarray[Any, Any]", loss: "np.ndarray[Any, Any]", limit: int) -> "np.ndarray[Any, Any]":
    """Return the places of choices within the limit that no other one beats in bytes and loss.

    total: (choices,), bytes.  loss: (choices,).  Returns (kept,), by ascending bytes and descending loss.
    """
    import numpy as np

    order = np.lexsort((loss, total))
    order = order[total[order] <= limit]
    falling = np.r_[True, loss[order][1:] < np.minimum.accumulate(loss[order])[:-1]]
    found: np.ndarray[Any, Any] = order[falling]
    return found


def choose_uniform(sizes: Sizes, losses: Losses, budget: int) -> str:
    """Return the single type with the least total loss that fits the budget, or an empty string."""
    fitting = [
        name for name in shared_types(sizes.values()) if sum(options[name] for options in sizes.values()) <= budget
    ]
    return min(fitting, key=lambda name: sum(options[name] for options in losses.values()), default="")


def shared_types(sizes: Iterable[Mapping[str, int]]) -> list[str]:
    """Return the types that every group can take."""
    first, *others = sizes
    return [name for name in first if all(name in options for options in others)]
