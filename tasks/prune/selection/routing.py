"""Importance of a mixture's experts on calibration text.

Source: Lasby et al. 2025, arXiv 2510.13999 (REAP: router-weighted expert activation pruning).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tasks.shared.errors import TechniqueError
from tasks.shared.mixtures import expert_count
from tasks.shared.model.calibration import batches
from tasks.shared.progress import track

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

ExpertCriterion = Literal["reap", "total", "frequency", "random"]
WEIGHED: frozenset[ExpertCriterion] = frozenset({"reap", "total"})
"""Criteria that read `Routing.outputs`."""


@dataclass(frozen=True)
class Routing:
    """Tokens and outputs of one layer's experts on calibration text.

    tokens: (experts,), int64, tokens that took each expert.
    outputs: (experts,), float64, sum over these of the gate weight times the norm of the expert's output.
    draws: (experts,), float64, uniform random numbers.
    """

    tokens: "Tensor"
    outputs: "Tensor"
    draws: "Tensor"


def reap(routing: Routing) -> "Tensor":
    """Mean gate-weighted norm of each expert's output, over the tokens that took it.

    Returns (experts,), float64; 0 for an expert that no token took.
    """
    return routing.outputs / routing.tokens.clamp(min=1)


def total(routing: Routing) -> "Tensor":
    """Sum, where `reap` takes the mean, so that experts which many tokens take count more.

    Returns (experts,), float64.
    """
    return routing.outputs


def frequency(routing: Routing) -> "Tensor":
    """Tokens that took each expert: (experts,), float64."""
    return routing.tokens.double()


CRITERIA: Mapping[ExpertCriterion, Callable[[Routing], "Tensor"]] = {
    "reap": reap,
    "total": total,
    "frequency": frequency,
    "random": lambda routing: routing.draws,
}


def expert_norms(experts: "Module", states: "Tensor", chosen: "Tensor") -> "Tensor":
    """Norm of what each chosen expert gives for a token, before its gate weight.

    experts: a layer's stacked experts, as transformers calls them: states, chosen experts, gate weights.
    states: (tokens, hidden).  chosen: (tokens, experts per token), indices, int64.
    Returns (tokens, experts per token), in the dtype of `states`.
    """
    import torch

    one = torch.ones(len(states), 1, dtype=states.dtype, device=states.device)
    norms = [experts.forward(states, chosen[:, [place]], one).norm(dim=-1) for place in range(chosen.shape[1])]
    return torch.stack(norms, dim=1)


def routed(chosen: "Tensor", amounts: "Tensor", experts: int) -> "Tensor":
    """Sum of the amounts of each expert.

    chosen, amounts: (tokens, experts per token).
    Returns (experts,), float64, on the CPU, where the order of the sum is always the same.
    """
    import torch

    return torch.bincount(chosen.flatten().cpu(), amounts.flatten().double().cpu(), minlength=experts)


def measure_routing(
    model: "PreTrainedModel",
    mixtures: "Mapping[int, Module]",
    ids: list[list[int]],
    batch_size: int,
    pad_id: int,
    outputs: bool = True,
) -> "dict[int, tuple[Tensor, Tensor]]":
    """Count tokens and add up outputs of every layer's experts, one forward pass per batch.

    Gate weights are those that the model's own router gives to its experts, normalized or scaled as the checkpoint asks.

    mixtures: stacked experts, by layer.
    outputs: False to count only, which saves computing every expert a second time.
    Returns tokens and outputs of each layer, as `Routing` has them.
    Raises TechniqueError if a layer's experts are called in an unknown way.
    """
    import torch

    count = expert_count(model.config.to_dict())
    sums: dict[int, list[Tensor]] = {}
    mask = torch.empty(0)

    def watch(layer: int) -> Any:
        def hook(experts: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
            values = (*args, *kwargs.values())
            check_call(layer, values, mask)
            states, chosen, weights = (value[mask] for value in values)
            norms = expert_norms(experts, states, chosen) if outputs else torch.zeros_like(weights)
            found = [routed(chosen, torch.ones_like(weights), count), routed(chosen, weights.double() * norms, count)]
            sums[layer] = [a + b for a, b in zip(sums[layer], found, strict=True)] if layer in sums else found

        return hook

    with ExitStack() as stack, torch.inference_mode():
        for layer, experts in mixtures.items():
            stack.callback(experts.register_forward_hook(watch(layer), with_kwargs=True).remove)
        for batch in track(batches(ids, batch_size, pad_id), "routing", -(-len(ids) // batch_size)):
            placed = {name: tensor.to(model.device) for name, tensor in batch.items()}
            mask = placed["attention_mask"].flatten().bool()
            model.base_model(**placed, use_cache=False)
    return {layer: (found[0].long(), found[1]) for layer, found in sums.items()}


def check_call(layer: int, values: Sequence[Any], mask: "Tensor") -> None:
    """Raise TechniqueError unless experts were given what `expert_norms` reads, of all tokens.

    values: arguments of a layer's experts.
    mask: (tokens,), padding included.
    """
    shapes = [tuple(getattr(value, "shape", ())) for value in values]
    if len(shapes) == 3 and all(len(shape) == 2 and shape[0] == len(mask) for shape in shapes) and shapes[1] == shapes[2]:  # fmt: skip
        return
    raise TechniqueError(
        f"layer {layer}",
        f"its experts are called with tensors of shapes {', '.join(map(str, shapes))}",
        f"states, chosen experts and gate weights of {len(mask)} tokens, as in docs/structured-pruning.md",
        "prune/depth",
    )
