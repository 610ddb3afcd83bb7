"""Runs of decoder layers that get the same weights: scores, choice and weights."""

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from tasks.prune.selection.layers import Reading, angular_distance, measure_angles
from tasks.shared.errors import TechniqueError
from tasks.shared.model.calibration import batches
from tasks.shared.model.layer_walk import LayerVisit, walk_layers
from tasks.shared.model.layout import decoder_layers
from tasks.shared.progress import track

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

RunCriterion = Literal["angular", "repeat", "random"]
Groups = tuple[tuple[int, ...], ...]


def check_groups(groups: Groups, total: int, layers: "Sequence[Module]" = ()) -> Groups:
    """Return explicit groups of layer indices, each in ascending order.

    layers: the model's, to compare the shapes of their weights; empty if they are unknown.
    Raises TechniqueError for an index outside the model or in the groups twice, a group of one layer, or layers of different shapes.
    """
    named = [index for group in groups for index in group]
    if outside := sorted({index for index in named if index >= total}):
        raise TechniqueError("groups", f"no layer {', '.join(map(str, outside))} in this model", f"0 to {total - 1}")
    if len(set(named)) != len(named):
        raise TechniqueError("groups", f"an index is listed twice in {named}", "every layer once")
    if any(len(group) < 2 for group in groups):
        raise TechniqueError(
            "groups", "a group of fewer than two layers, which shares nothing", "two layers or more in each"
        )
    if layers and (uneven := [group for group in groups if not alike([layers[index] for index in group])]):
        raise TechniqueError(
            "groups", f"weights of different shapes in the layers of {uneven[0]}", "layers of one kind"
        )
    return tuple(tuple(sorted(group)) for group in groups)


def alike(layers: "Sequence[Module]") -> bool:
    """Return True if layers have weights of the same names and shapes."""
    shapes = [{name: value.shape for name, value in layer.state_dict().items()} for layer in layers]
    return all(each == shapes[0] for each in shapes)


def run_scores(
    criterion: RunCriterion, model: "PreTrainedModel", reading: Reading, size: int, seed: int
) -> list[float]:
    """Return the score of the run of `size` layers that starts at each layer.

    The lowest are shared.  Runs of layers whose weights have different shapes score infinity.
    """
    layers = list(decoder_layers(model))
    starts = range(len(layers) - size + 1)
    match criterion:
        case "angular":
            scores = measure_angles(model, *reading, size)
        case "repeat":
            scores = measure_repeats(model, *reading, size)
        case "random":
            draw = random.Random(seed)
            scores = [draw.random() for _ in starts]
    return [
        score if alike(layers[start : start + size]) else math.inf for start, score in zip(starts, scores, strict=True)
    ]


def measure_repeats(
    model: "PreTrainedModel", ids: list[list[int]], batch_size: int, pad_id: int, size: int
) -> list[float]:
    """Mean angle between what a run's later layers give and its first one in their place.

    Summed over the later layers, by the first layer of the run.  All read the states that enter the later layer in the model as it is.
    """
    layers, tokens = decoder_layers(model), sum(map(len, ids))
    sums = [0.0] * (len(layers) - size + 1)
    visits = walk_layers(model, batches(ids, batch_size, pad_id))
    for visit in track(visits, "repeated layers", len(layers)):
        for start in range(max(0, visit.index - size + 1), min(visit.index, len(sums))):
            other = LayerVisit(visit.index, layers[start], visit.calls)
            for call in visit.calls:
                sums[start] += float(angular_distance(visit.run(call), other.run(call), call.mask))
    return [each / tokens for each in sums]


def choose_runs(scores: Sequence[float], free: range, count: int, size: int) -> list[int]:
    """Return the starts of the runs without overlap that have the lowest sum of scores.

    Ascending; of equal sums, the earlier runs.
    scores: of the run that starts at each layer.  free: layers that may be shared, at least count x size.
    Raises TechniqueError if every choice has a score of infinity.
    """
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())] * (len(free) + 1)  # by number of free layers looked at
    for _ in range(count):
        found: list[tuple[float, tuple[int, ...]]] = [(math.inf, ())] * size
        for end in range(size, len(free) + 1):
            start, (cost, runs) = free[end - size], best[end - size]
            found.append(min(found[-1], (cost + scores[start], (*runs, start))))
        best = found
    cost, runs = best[-1]
    if not math.isfinite(cost):
        raise TechniqueError(
            "size", f"no {count} runs of {size} layers whose weights have the same shapes", "layers of one kind in a row",
            "fewer or shorter runs, or name the layers (groups)",
        )  # fmt: skip
    return list(runs)


def share_layers(layers: "Sequence[Module]", groups: Groups, method: Literal["copy_first", "mean"]) -> None:
    """Give the layers of each group the same weights, in place.

    method: the first layer's weights, or the mean of all; what is no float is the first one's in any case.
    """
    import torch

    with torch.no_grad():
        for group in groups:
            states: list[dict[str, Any]] = [layers[index].state_dict() for index in group]
            for name, first in states[0].items():
                if method == "mean" and first.is_floating_point():
                    first.copy_(torch.stack([state[name].double() for state in states]).mean(0))
                for state in states[1:]:
                    state[name].copy_(first)
