"""Importance of decoder layers on calibration text, and the layers that are dropped."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tasks.prune.selection.losses import text_loss
from tasks.shared.errors import TechniqueError
from tasks.shared.model.activations import collect
from tasks.shared.model.calibration import batches
from tasks.shared.model.head import check_head
from tasks.shared.model.layout import decoder_layers
from tasks.shared.progress import track

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Reading(NamedTuple):
    """Calibration text: token ids by conversation, conversations per pass, padding token."""

    ids: list[list[int]]
    batch_size: int
    pad_id: int


LayerCriterion = Literal["influence", "angular", "perplexity", "first", "last", "random"]
READ_TEXT: tuple[LayerCriterion, ...] = ("influence", "angular", "perplexity")
"""Criteria that the calibration text decides."""


def block_influence(hidden_in: "Tensor", hidden_out: "Tensor", mask: "Tensor") -> "Tensor":
    """Block influence of a layer: 1 - cosine similarity of input and output, summed over tokens.

    hidden_in, hidden_out: (batch, length, hidden), any float dtype.  mask: (batch, length), 1 on real tokens.
    Returns a float64 scalar >= 0; divide the sum over batches by the number of real tokens for the mean of
    Men et al. 2024, section 3.1 (equation 1).  A layer that only rescales its input has influence 0.
    """
    from torch.nn.functional import cosine_similarity

    similarity = cosine_similarity(hidden_in.double(), hidden_out.double(), dim=-1)  # (batch, length)
    return ((1.0 - similarity) * mask).sum().clamp(min=0.0)


def angular_distance(hidden_in: "Tensor", hidden_out: "Tensor", mask: "Tensor") -> "Tensor":
    """Angle between states before and after some layers, in half turns, summed over tokens.

    hidden_in, hidden_out: (batch, length, hidden), any float dtype.  mask: (batch, length), 1 on real tokens.
    Returns a float64 scalar, 0 to 1 per token.
    Gromov et al. 2024, arXiv 2403.17887, section 3.2 (equation 7), there of the last token only.
    """
    from torch.nn.functional import cosine_similarity

    similarity = cosine_similarity(hidden_in.double(), hidden_out.double(), dim=-1).clamp(-1.0, 1.0)
    return (similarity.arccos() / math.pi * mask).sum()


def free_layers(total: int, ratio: float, protect_first: int = 0, protect_last: int = 0) -> tuple[range, int]:
    """Return the layers that may be dropped, and how many of them: round(ratio * total).

    Raises TechniqueError if that is every layer, or more than the protected ends leave.
    """
    count = round(ratio * total)
    if count >= total:
        raise TechniqueError(
            "ratio",
            f"{ratio} would drop all {total} layers",
            "at least one layer kept",
            f"ratio={(total - 1) / total:.2f} or less",
        )
    free = range(protect_first, total - protect_last)
    if count > len(free):
        raise TechniqueError(
            "ratio",
            f"{ratio} asks for {count} of {total} layers, but the protected ends leave {len(free)}",
            f"protect_first + protect_last <= {total - count}",
            f"ratio={len(free) / total:.2f} or less, or protect fewer layers",
        )
    return free, count


def lowest_layers(influence: Sequence[float], free: Sequence[int], count: int) -> list[int]:
    """Choose the layers with the lowest influence; of equal ones, the later one goes first."""
    return sorted(sorted(free, key=lambda index: (influence[index], -index))[:count])


def closest_run(distances: Sequence[float], free: range, count: int) -> list[int]:
    """Choose the run of `count` layers in a row whose states before and after it are closest.

    distances: of the run that starts at each layer.
    Of equal ones, the later run goes.
    """
    if not count:
        return []
    start = min(free[: len(free) - count + 1], key=lambda index: (distances[index], -index))
    return list(range(start, start + count))


def layers_by_place(
    criterion: Literal["first", "last", "random"], free: Sequence[int], count: int, seed: int
) -> list[int]:
    """Choose the first or last layers that may go, or random ones by the seed."""
    if criterion == "random":
        return sorted(random.Random(seed).sample(list(free), count))
    return list(free[:count] if criterion == "first" else free[len(free) - count :])


def choose_layers(
    criterion: LayerCriterion,
    model: "PreTrainedModel",
    reading: Reading,
    influence: Sequence[float],
    free: range,
    count: int,
    seed: int,
) -> tuple[list[int], Mapping[int, float]]:
    """Choose the layers to drop by a criterion.

    influence: of every layer.
    free, count: layers that may go, and how many of them, at least 1.
    Returns the layers in ascending order, and what the criterion compared, by layer; nothing where it looks at no layer.
    """
    match criterion:
        case "influence":
            return lowest_layers(influence, free, count), dict(enumerate(influence))
        case "angular":
            distances = measure_angles(model, *reading, count)
            return closest_run(distances, free, count), dict(enumerate(distances))
        case "perplexity":
            return greedy_layers(model, *reading, free, count)
        case _:
            return layers_by_place(criterion, free, count, seed), {}


def measure_influence(model: "PreTrainedModel", ids: list[list[int]], batch_size: int, pad_id: int) -> list[float]:
    """Mean block influence of every decoder layer over the tokens of `ids`, without padding."""
    passes = track(batches(ids, batch_size, pad_id), "block influence", -(-len(ids) // batch_size))
    return _means(model, ids, passes, lambda _, before, after, mask: block_influence(before, after, mask))


def measure_angles(
    model: "PreTrainedModel", ids: list[list[int]], batch_size: int, pad_id: int, count: int
) -> list[float]:
    """Mean angular distance across each run of `count` layers, by the layer where it starts."""
    import torch

    entered: dict[int, Tensor] = {}

    def reduce(layer: int, before: "Tensor", after: "Tensor", mask: "Tensor") -> "Tensor":
        entered[layer] = before
        start = layer - count + 1
        return angular_distance(entered.pop(start), after, mask) if start >= 0 else torch.zeros((), dtype=torch.float64)

    passes = track(batches(ids, batch_size, pad_id), "angular distance", -(-len(ids) // batch_size))
    return _means(model, ids, passes, reduce)[count - 1 :]


def _means(
    model: "PreTrainedModel", ids: list[list[int]], passes: Iterable[Any], reduce: Callable[..., Any]
) -> list[float]:
    sums = collect(model, passes, enumerate(decoder_layers(model)), reduce)
    found = [float(sums[index] / sum(map(len, ids))) for index in sorted(sums)]
    bad = [index for index, value in enumerate(found) if not math.isfinite(value)]
    if bad:
        raise TechniqueError(
            f"layer {bad[0]}", "its states on the calibration rows are not finite", "finite activations",
            "check the model with evaluate/perplexity, or name the layers to drop",
        )  # fmt: skip
    return found


def greedy_layers(
    model: "PreTrainedModel", ids: list[list[int]], batch_size: int, pad_id: int, free: Sequence[int], count: int
) -> tuple[list[int], dict[int, float]]:
    """Drop one layer after another, each time that without which the text is most likely.

    Returns the dropped layers, and the negative log-likelihood per token without each single layer.
    Kim et al. 2024, arXiv 2402.02834, section 3 rank layers by perplexity once; here the others are measured again after each.
    """
    import torch

    check_head(model)
    dropped: list[int] = []
    first: dict[int, float] = {}
    tokens = sum(len(row) - 1 for row in ids)
    rounds = [(turn, layer) for turn in range(count) for layer in free]
    losses: dict[int, float] = {}
    for _, layer in track(rounds, "perplexity without a layer", len(rounds)):
        if layer not in dropped:
            with passed_over(model, [*dropped, layer]), torch.inference_mode():
                losses[layer] = (
                    sum(float(text_loss(model, batch)) for batch in batches(ids, batch_size, pad_id)) / tokens
                )
        if layer == free[-1]:  # a round ends
            first = first or dict(losses)
            dropped.append(min(losses, key=lambda index: (losses[index], -index)))
            losses.clear()
    return sorted(dropped), first


@contextmanager
def passed_over(model: "PreTrainedModel", layers: Sequence[int]) -> Iterator[None]:
    """Let these layers give their input, while the block lasts."""

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        before = args[0] if args else kwargs["hidden_states"]
        return (before, *output[1:]) if isinstance(output, tuple) else before

    with ExitStack() as stack:
        for index in layers:
            stack.callback(decoder_layers(model)[index].register_forward_hook(hook, with_kwargs=True).remove)
        yield
