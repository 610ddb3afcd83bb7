"""Paired values of a baseline and a candidate, and the units that are independent evidence."""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.shared.errors import TechniqueError
from tasks.shared.formats.scores import ItemScore, Measure


@dataclass(frozen=True)
class Pairs:
    """Paired values of baseline and candidate, (n,) each, with the items' weights and clusters.

    largest: weight of the heaviest cluster that more items could bring; 0 if these are all.
    """

    measure: Measure
    baseline: Sequence[float]
    candidate: Sequence[float]
    weights: Sequence[float]
    clusters: Sequence[str]
    largest: float = 0.0

    @property
    def sign(self) -> float:
        """+1 where higher is better, -1 where lower is better."""
        return 1.0 if self.measure.better == "higher" else -1.0

    @property
    def correctness(self) -> tuple[list[bool], list[bool]]:
        """Binary values as right or wrong; where lower is better, 1 is wrong."""
        good = 1.0 if self.measure.better == "higher" else 0.0
        return [value == good for value in self.baseline], [value == good for value in self.candidate]

    @property
    def gains(self) -> list[float]:
        """Difference per item, (n,); positive in favor of the candidate."""
        return [self.sign * (after - before) for before, after in zip(self.baseline, self.candidate, strict=True)]

    @property
    def clustered(self) -> bool:
        """True if items share clusters, so that there are fewer independent items than items."""
        return len(set(self.clusters)) < len(self.clusters)

    @property
    def bounded(self) -> bool:
        """True if all values are known to lie between 0 and 1."""
        return self.measure.unit == "share" and all(0.0 <= value <= 1.0 for value in (*self.baseline, *self.candidate))

    @property
    def reach(self) -> float:
        """Largest change one item can make: 1 for a share, or the observed range if that is larger."""
        seen = [*self.baseline, *self.candidate]
        return max(max(seen) - min(seen), 1.0 if self.measure.unit == "share" else 0.0)

    def grouped(self, changes: Sequence[float]) -> tuple[list[float], list[float]]:
        """Cluster means and cluster weights of one value per item: the units of resampling."""
        return by_group(changes, self.weights, self.clusters)


def pair_items(
    measure: Measure,
    items: Sequence[ItemScore],
    baseline: str,
    candidate: str,
    prefix: bool = False,
    largest: float = 0.0,
) -> Pairs:
    """Return the items of one measure that both models have.

    prefix: the candidate may lack the last items, since it was not asked them.  largest: as in `Pairs`.
    Raises TechniqueError if one model has items that the other lacks.
    """
    if prefix:
        items = items[: max((place for place, item in enumerate(items, 1) if candidate in item.values), default=0)]
    odd = [item.id for item in items if (baseline in item.values) != (candidate in item.values)]
    if odd:
        raise TechniqueError(
            f"comparison of {candidate} with {baseline}",
            f"{len(odd)} items answered by one model only ({', '.join(odd[:3])})",
            "the same items for both",
        )
    both = [item for item in items if baseline in item.values]
    return Pairs(
        measure,
        [item.values[baseline] for item in both],
        [item.values[candidate] for item in both],
        [item.weight for item in both],
        [item.cluster or item.id for item in both],
        largest,
    )


def by_group(
    values: Sequence[float], weights: Sequence[float], groups: Sequence[str]
) -> tuple[list[float], list[float]]:
    """Return weighted means and total weights of groups, in order of appearance."""
    totals: dict[str, tuple[float, float]] = {}
    for value, weight, group in zip(values, weights, groups, strict=True):
        before, so_far = totals.get(group, (0.0, 0.0))
        totals[group] = before + weight * value, so_far + weight
    return [total / weight for total, weight in totals.values()], [weight for _, weight in totals.values()]
