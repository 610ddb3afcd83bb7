"""Calibration rows through a model, one decoder layer at a time.

A layer may be changed before the next one is asked for, which then reads what the changed one gives.  Only the states between two
layers are kept, and the statistics of one layer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import TechniqueError
from tasks.shared.model.layout import decoder_layers

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

Reduce = Callable[["Tensor", "Tensor"], "Tensor"]
"""(input, mask) -> summand.  input: (batch, length, width).  mask: (batch, length), 1 on real tokens."""
FIX = "other calibration rows; if these weights were pruned before, prune less, or check the model with evaluate/perplexity"


@dataclass
class Call:
    """A batch as it enters a layer.

    states: (batch, length, hidden).  more, named: the layer's other arguments.  mask: (batch, length), 1 on real tokens.
    """

    states: "Tensor"
    more: tuple[Any, ...]
    named: Mapping[str, Any]
    mask: "Tensor"


@dataclass(frozen=True)
class LayerVisit:
    """A decoder layer with the calibration rows that enter it."""

    index: int
    layer: "Module"
    calls: list[Call]

    def run(self, call: Call) -> "Tensor":
        """Return what the layer gives for a batch: (batch, length, hidden)."""
        import torch

        with torch.no_grad():
            found = self.layer(call.states, *call.more, **call.named)
        output: Tensor = found[0] if isinstance(found, tuple) else found
        return output

    def input_sums(self, modules: "Mapping[str, Module]", reduce: Reduce) -> "dict[str, Tensor]":
        """Sum a statistic of what enters modules of the layer, over all rows.

        modules: by name, inside the layer.  Modules that read the same tensor (query, key and value) share one sum, computed once.
        """
        sums: dict[str, Tensor] = {}
        first: dict[str, str] = {}
        seen: list[tuple[Tensor, str]] = []
        mask: list[Tensor] = []

        def watch(name: str) -> Any:
            def hook(_: Any, given: tuple[Any, ...]) -> None:
                entering = given[0]
                first[name] = next((other for tensor, other in seen if tensor is entering), name)
                if first[name] == name:
                    seen.append((entering, name))
                    found = reduce(entering, mask[0])
                    sums[name] = sums[name] + found if name in sums else found

            return hook

        handles = [module.register_forward_pre_hook(watch(name)) for name, module in modules.items()]
        try:
            for call in self.calls:
                mask[:], seen[:] = [call.mask], []
                self.run(call)
        finally:
            for handle in handles:
                handle.remove()
        return {name: sums[owner] for name, owner in first.items()}


def walk_layers(model: "PreTrainedModel", batches: "Iterable[Mapping[str, Tensor]]") -> Iterator[LayerVisit]:
    """Yield the decoder layers in order, each with what enters it.

    batches: arguments of the forward pass, as `tasks.shared.model.calibration.batches` makes them.
    Raises TechniqueError if the states that enter or leave a layer are not finite.
    """
    arrivals = _arrivals(model, batches)
    for index, layer in enumerate(decoder_layers(model)):
        calls, following = arrivals[index], arrivals[index + 1] if index + 1 < len(arrivals) else []
        if index == 0:
            _check_finite(calls, "the embedding")
        visit = LayerVisit(index, layer, calls)
        yield visit
        for place, call in enumerate(calls):
            call.states = visit.run(call)
            if following:
                following[place].states = call.states
        _check_finite(calls, f"layer {index}")
        arrivals[index] = []


def _arrivals(model: "PreTrainedModel", batches: "Iterable[Mapping[str, Tensor]]") -> list[list[Call]]:
    """Arguments of every layer for every batch; the states are those that enter the first layer.

    The layers themselves are skipped: masks and positions, which layers share, depend on the batch alone.
    """
    import torch

    layers = decoder_layers(model)
    arrivals: list[list[Call]] = [[] for _ in layers]
    mask: Tensor = torch.empty(0)

    def skip(index: int) -> Any:
        def forward(*given: Any, **named: Any) -> Any:
            states, more = (given[0], given[1:]) if given else (named.pop("hidden_states"), ())
            arrivals[index].append(Call(states, more, named, mask))
            return states

        return forward

    for index, layer in enumerate(layers):
        layer.forward = skip(index)
    try:
        for batch in batches:
            placed = {name: tensor.to(model.device) for name, tensor in batch.items()}
            mask = placed.get("attention_mask", torch.ones_like(placed["input_ids"]))
            with torch.no_grad():
                model.base_model(**placed, use_cache=False)
    finally:
        for layer in layers:
            del layer.forward
    return arrivals


def _check_finite(calls: list[Call], place: str) -> None:
    import torch

    broken = sum(not bool(torch.isfinite(call.states[call.mask.bool()]).all()) for call in calls)
    if broken:
        raise TechniqueError(
            "calibration", f"what {place} gives is not finite in {broken} of {len(calls)} batches", "finite activations", FIX
        )  # fmt: skip
