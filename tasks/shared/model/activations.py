"""Statistics of module inputs and outputs, summed over batches by forward hooks."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

Key = TypeVar("Key", bound=Hashable)
Reduce = Callable[[Key, "Tensor", "Tensor", "Tensor"], "Tensor"]
"""(point, input, output, mask) -> summand at this point.  input, output: (batch, length, width).  mask: (batch, length)."""


def collect(
    model: "PreTrainedModel",
    batches: Iterable[Mapping[str, "Tensor"]],
    points: Iterable[tuple[Key, "Module"]],
    reduce: Reduce[Key],
) -> dict[Key, "Tensor"]:
    """Sum `reduce` over batches at every point; one forward pass per batch, without the head.

    batches: arguments of the forward pass; `input_ids` is (batch, length), `attention_mask` is 1 on real tokens (default: all).
    points: modules to watch, by key; modules with the same key are added up.  A module's input is its first argument.
    Returns the sums on the CPU, by key.
    """
    import torch

    sums: dict[Key, Tensor] = {}
    mask: Tensor = torch.empty(0)

    def watch(point: Key) -> Any:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            found = reduce(point, before, output[0] if isinstance(output, tuple) else output, mask).cpu()
            sums[point] = sums[point] + found if point in sums else found

        return hook

    handles = [module.register_forward_hook(watch(point), with_kwargs=True) for point, module in points]
    try:
        with torch.inference_mode():
            for batch in batches:
                placed = {name: tensor.to(model.device) for name, tensor in batch.items()}
                mask = placed.get("attention_mask", torch.ones_like(placed["input_ids"]))
                model.base_model(**placed, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return sums
