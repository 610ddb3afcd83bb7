"""Masks in training: weights that pruning set to zero stay zero.

The model's folder names the masked matrices (`tasks.shared.model.masks`), and the zeros themselves are the masks.  So each process
finds those of its part of the weights, with FSDP too.
"""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import TechniqueError
from tasks.shared.model.masks import clear, hold_zeros

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, TrainerCallback

WRAPPED = ("base_model.model.", ".base_layer", "_orig_mod.", "_fsdp_wrapped_module.")
"""What peft, torch.compile and FSDP add to names."""


class HeldZeros:
    """Trainer mixin that keeps masked weights at zero.

    masked: names of the masked weights.  Their gradients are zero where the weights are, so that neither the clipping nor the
    optimizer's moments see weights that do not exist; `zero_keeper` sets the weights to zero again after every step.
    """

    masked: Collection[str] = ()
    zeros: "list[tuple[Any, Tensor]]"
    model: Any

    def find_zeros(self) -> None:
        """Note where the masked weights are zero, once they are in place for the training."""
        self.zeros = list(_zeros(self.model, self.masked))

    def _clip_grad_norm(self, model: Any) -> Any:
        for weight, zeros in self.zeros:
            if weight.grad is not None:
                clear(local_part(weight.grad), zeros)
        return super()._clip_grad_norm(model)  # type: ignore[misc]


def zero_keeper(trainer: Any) -> "TrainerCallback":
    """Return a callback that sets masked weights to zero after every step of the optimizer."""
    from transformers import TrainerCallback

    class ZeroKeeper(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.find_zeros()

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for weight, zeros in trainer.zeros:
                clear(local_part(weight.detach()), zeros)

    return ZeroKeeper()


def mask_adapters(model: Any, masked: Collection[str]) -> None:
    """Let adapters add nothing where masked weights are zero, in training as in the merge.

    model: with peft's adapters, or without any, which changes nothing.
    The product of an adapter's two matrices is computed as a whole, which takes the memory of one more copy of the adapted weights.
    Raises TechniqueError for adapters with dropout, whose output is no product with one matrix.
    """
    for name, part in model.named_modules():
        if hasattr(part, "base_layer") and plain_name(f"{name}.weight") in masked:
            if any(getattr(dropout, "p", 0.0) for dropout in part.lora_dropout.values()):
                raise TechniqueError(
                    "lora.dropout",
                    "dropout in the adapters of a model with masks",
                    "adapters that are one matrix, which the mask can cut",
                    "lora.dropout=0",
                )
            part.forward = _masked_forward(part)


def _masked_forward(part: Any) -> Any:
    from torch.nn.functional import linear

    zeros = part.base_layer.weight == 0

    def forward(states: "Tensor", *_: Any, **__: Any) -> "Tensor":
        (adapter,) = part.active_adapters
        base = part.base_layer
        product = part.lora_B[adapter].weight @ part.lora_A[adapter].weight * part.scaling[adapter]  # (out, in)
        change = (product.T if part.fan_in_fan_out else product).masked_fill(zeros.to(product.device), 0.0)
        weight = base.weight + change.to(base.weight.dtype)
        return linear(states, weight.T if part.fan_in_fan_out else weight, base.bias)

    return forward


def merged(model: Any, masked: Collection[str], merge: Any) -> "PreTrainedModel":
    """Return merge(model) with the masked weights at zero where they are in `model`."""
    zeros = {name: zeros for name, _, zeros in _named_zeros(model, masked)}
    whole: PreTrainedModel = merge(model)
    hold_zeros(whole, zeros)
    return whole


def plain_name(name: str) -> str:
    """Return a weight's name as in the model's folder."""
    for part in WRAPPED:
        name = name.replace(part, "")
    return name


def _zeros(model: Any, masked: Collection[str]) -> "Iterator[tuple[Any, Tensor]]":
    """Yield the trained ones of the masked weights, and where they are zero."""
    return ((weight, zeros) for _, weight, zeros in _named_zeros(model, masked) if weight.requires_grad)


def _named_zeros(model: Any, masked: Collection[str]) -> "Iterator[tuple[str, Any, Tensor]]":
    wanted = set(masked)
    for name, weight in model.named_parameters():
        if plain_name(name) in wanted:
            yield plain_name(name), weight, local_part(weight.detach()) == 0


def local_part(tensor: Any) -> "Tensor":
    """Return this process's part of a tensor that FSDP shares out, in its own memory."""
    found: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found
