"""Choice of a cut within a budget (pure Python).

Layers are put in the order of their removal, candidates listed, and the best of them found.  A model has one width for all layers, so
that its size is a product of layers and widths, and no sum of parts: there are few candidates, and all are listed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tasks.prune.cuts.size import Cut
from tasks.prune.selection.shape import Shape
from tasks.shared.errors import TechniqueError

Divergence = Callable[[Cut], float]
"""Divergence from the whole model, in nats per token."""
Count = Callable[[Cut], int]
"""Number of parameters that a cut leaves."""

MILLISECONDS = "milliseconds per token"


@dataclass(frozen=True)
class Bound:
    """Most that the model that remains may cost.

    most: in units.
    cost: of what a cut leaves.
    unit: of both.
    """

    most: float
    cost: Callable[[Cut], float]
    unit: str = "parameters"

    def fits(self, cut: Cut) -> bool:
        """Return True if what a cut leaves costs no more than this."""
        return self.cost(cut) <= self.most


@dataclass(frozen=True)
class Levels:
    """Cuts of each kind to choose from.

    before: sizes of the whole model.
    layers: most layers that may go.
    widths: numbers of neurons, descending; the first is the whole.
    points: those of them that are measured.
    heads: sizes with fewer heads; the first has all of them.
    """

    before: Shape
    layers: int
    widths: tuple[int, ...]
    points: tuple[int, ...]
    heads: tuple[Shape, ...]

    @property
    def smallest(self) -> Cut:
        """The cut of all kinds as far as they go."""
        fewest = min(self.heads, key=lambda shape: (shape.heads * shape.head_dim, shape.kv_heads))
        return Cut(tuple(range(self.layers)), replace(fewest, intermediate=self.widths[-1]))


@dataclass(frozen=True)
class Candidate:
    """A cut within the budget.

    cost: of what it leaves, in the units of the bound.
    predicted: sum of the divergences of its layers, neurons and heads, each measured alone.
    measured: divergence of all of them together; None if it was not measured.
    """

    cut: Cut
    cost: float
    predicted: float
    measured: float | None = None


class Measurement(NamedTuple):
    """Divergence of a cut of one kind of units alone.

    kind: "layer" for a single one; else layers, neurons or heads.
    level: index of the single layer; else the units that stay.
    """

    kind: str
    level: int
    cut: Cut
    divergence: float


@dataclass(frozen=True)
class Choice:
    """A cut within the budget, and how it was found.

    chosen: the best of the candidates.
    candidates: in the order of their prediction.
    measurements: of each kind of cut alone.
    """

    chosen: Candidate
    candidates: Sequence[Candidate]
    measurements: Sequence[Measurement]


def removal_order(levels: Levels, shortlist: int, divergence: Divergence, enough: Callable[[Cut], bool]) -> list[Cut]:
    """Return cuts of no layer, one layer and so on, until they are enough or no more may go.

    Each cut adds to the one before it a layer of the shortlist: of those left, the ones with the least divergence when dropped alone.
    The one with the least divergence of the whole cut is taken; of equal ones, the later layer.
    Song et al. 2024, arXiv 2402.09025 (SLEB) drop one block after another as well, by perplexity and with all of them as the shortlist.
    """
    cuts = [Cut((), levels.before)]
    if not levels.layers or enough(cuts[0]):
        return cuts
    alone = {layer: divergence(Cut((layer,), levels.before)) for layer in range(levels.before.layers)}
    while len(cuts) <= levels.layers and not enough(cuts[-1]):
        left = sorted(cuts[-1].kept, key=lambda layer: (alone[layer], -layer))[:shortlist]
        tried = {layer: Cut(tuple(sorted((*cuts[-1].dropped, layer))), levels.before) for layer in left}
        cuts.append(tried[min(tried, key=lambda layer: (divergence(tried[layer]), -layer))])
    return cuts


def candidates(levels: Levels, layers: Sequence[Cut], fits: Callable[[Cut], bool]) -> list[Cut]:
    """Return for each number of layers and heads the cut with most neurons that fits the budget.

    layers: cuts of layers alone.
    Cuts that keep no more of anything than another one are left out.
    """
    found = []
    for heads in levels.heads:
        for dropped in layers:
            tried = (Cut(dropped.dropped, replace(heads, intermediate=width)) for width in levels.widths)
            found += [cut for cut in tried if fits(cut)][:1]
    return [cut for cut in found if not any(cut != other and keeps_all(other, cut) for other in found)]


def keeps_all(cut: Cut, other: Cut) -> bool:
    """Return True if a cut keeps no less of anything than another one."""
    mine, theirs = cut.shape, other.shape
    sizes = (mine.heads >= theirs.heads, mine.kv_heads >= theirs.kv_heads, mine.intermediate >= theirs.intermediate)
    return set(cut.dropped) <= set(other.dropped) and all(sizes)


def between(points: Mapping[int, float], place: int) -> float:
    """Interpolate linearly between the two nearest points.

    points: value by place; the smallest and the largest place include `place`.
    """
    if place in points:
        return points[place]
    low, high = max(at for at in points if at < place), min(at for at in points if at > place)
    share = (place - low) / (high - low)
    return points[low] + share * (points[high] - points[low])


def needed_points(points: Sequence[int], cuts: Sequence[Cut]) -> list[int]:
    """Return the widths to measure: descending, down to the first than which no cut is narrower.

    points: descending.
    """
    narrowest = min(cut.shape.intermediate for cut in cuts)
    return list(points[: 1 + next(place for place, width in enumerate(points) if width <= narrowest)])


def to_measure(ranked: Sequence[Candidate], checks: int, before: Shape) -> list[Candidate]:
    """Return the candidates that are measured as a whole.

    These are the first ones, and the best ones of a single kind: layers, neurons or heads alone.
    ranked: in the order of their prediction.
    """
    alone: dict[tuple[str, ...], Candidate] = {}
    for candidate in ranked:
        kinds = candidate.cut.kinds(before)
        if len(kinds) <= 1:
            alone.setdefault(kinds, candidate)
    return [candidate for place, candidate in enumerate(ranked) if place < checks or candidate in alone.values()]


def search(levels: Levels, shortlist: int, checks: int, divergence: Divergence, bound: Bound) -> Choice:
    """Return the cut within the budget that has the least divergence, as measured as a whole.

    shortlist: layers to try for each that goes.  checks: cuts to measure as a whole, in the order of their prediction.
    Raises TechniqueError if no cut fits the budget.
    """
    before = levels.before
    layers = removal_order(levels, shortlist, divergence, bound.fits)
    cuts = candidates(levels, layers, bound.fits)
    if not cuts:
        raise TechniqueError(
            "levels",
            f"no cut leaves {shown(bound.most)} {bound.unit} or fewer",
            "layers, neurons and heads that may go",
            "larger levels",
        )
    found = [Measurement("layers", len(cut.kept), cut, divergence(cut)) for cut in layers]
    if len(layers) > 1:
        single = (Cut((layer,), before) for layer in range(before.layers))
        found = [Measurement("layer", cut.dropped[0], cut, divergence(cut)) for cut in single] + found
    widths = [Cut((), replace(before, intermediate=width)) for width in needed_points(levels.points, cuts)]
    found += [Measurement("neurons", cut.shape.intermediate, cut, divergence(cut)) for cut in widths]
    heads = [
        Cut((), shape)
        for shape in levels.heads
        if any(cut.shape.heads == shape.heads and cut.shape.kv_heads == shape.kv_heads for cut in cuts)
    ]
    found += [Measurement("heads", cut.shape.heads, cut, divergence(cut)) for cut in heads]
    ranked = sorted(
        (Candidate(cut, bound.cost(cut), predict(found, cut)) for cut in cuts),
        key=lambda candidate: candidate.predicted,
    )
    tried = to_measure(ranked, checks, before)
    ranked = [replace(each, measured=divergence(each.cut)) if each in tried else each for each in ranked]
    known = [(each.measured, place) for place, each in enumerate(ranked) if each.measured is not None]
    return Choice(ranked[min(known)[1]], ranked, found)


def predict(measurements: Sequence[Measurement], cut: Cut) -> float:
    """Return the sum of divergences of a cut's layers, neurons and heads, each alone."""
    shape = cut.shape
    neurons = {at.level: at.divergence for at in measurements if at.kind == "neurons"}
    layers = next(at.divergence for at in measurements if at.kind == "layers" and at.cut.dropped == cut.dropped)
    heads = next(
        at.divergence
        for at in measurements
        if at.kind == "heads" and (at.cut.shape.heads, at.cut.shape.kv_heads) == (shape.heads, shape.kv_heads)
    )
    return layers + between(neurons, shape.intermediate) + heads


def too_small(setting: str, fits: float, bound: Bound, levels: Levels) -> TechniqueError:
    """Return the error for a budget below the smallest cut.

    setting: the one that states the budget.  fits: value of it that the smallest cut fits.
    """
    before, after = levels.before, levels.smallest.result
    total, least = shown(bound.cost(Cut((), before))), shown(bound.cost(levels.smallest))
    return TechniqueError(
        setting,
        f"{shown(bound.most)} of {total} {bound.unit}, and the smallest cut leaves {least}: {after.layers} of {before.layers} layers, "
        f"{after.intermediate} of {before.intermediate} neurons, {after.heads} of {before.heads} heads",
        f"{least} {bound.unit} or more",
        f"{setting}={fits}, or larger levels, or more units",
    )


def shown(value: float) -> str:
    """Return a number of parameters in full, and a time in three digits or more."""
    return f"{value:,.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.3g}"
