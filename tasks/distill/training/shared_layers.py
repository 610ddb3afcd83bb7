"""Shared layers in training: copies of a layer get the same step, and stay copies.

The model's folder names the layers (`tasks.shared.model.shared_layers`).  Adapters and learned scales of the layers are held together
as well, since they have the same names in each.
"""

import math
from typing import TYPE_CHECKING, Any

from tasks.distill.training.masks import local_part, plain_name
from tasks.shared.errors import TechniqueError
from tasks.shared.model.shared_layers import SharedLayers

if TYPE_CHECKING:
    from transformers import TrainerCallback


class HeldCopies:
    """Trainer mixin that keeps shared layers the same.

    shared: the model's shared layers.  Each copy gets the sum of their gradients, which is the gradient of weights that are one tensor,
    divided by the square root of their number: so that clipping sees the norm of that one gradient.  Adam's step does not depend on the
    gradient's scale.  `copy_keeper` copies the first layer's weights after every step besides.
    """

    shared: SharedLayers | None = None
    copies: list[list[Any]]
    model: Any

    def find_copies(self) -> None:
        """Note the trained copies, and let all begin as the first ones, random adapters too."""
        weights = {plain_name(name): weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        groups = self.shared.copies(weights) if self.shared else []
        self.copies = [[weights[name] for name in names] for names in groups]
        self.copy_first()

    def copy_first(self) -> None:
        """Copy the first layer's weights of each group to the others."""
        for first, *others in self.copies:
            for other in others:
                local_part(other.detach()).copy_(local_part(first.detach()))

    def _clip_grad_norm(self, model: Any) -> Any:
        import torch

        for weights in self.copies:
            if all(weight.grad is None for weight in weights):
                continue
            for weight in weights:
                if weight.grad is None:  # a loss that ends before the last copy
                    weight.grad = torch.zeros_like(weight)
            parts = [local_part(weight.grad) for weight in weights]
            total = torch.stack(parts).sum(0) / math.sqrt(len(parts))
            for part in parts:
                part.copy_(total)
        return super()._clip_grad_norm(model)  # type: ignore[misc]


def copy_keeper(trainer: Any) -> "TrainerCallback":
    """Return a callback that copies the first layer's weights after every step of the optimizer."""
    from transformers import TrainerCallback

    class CopyKeeper(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.find_copies()

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.copy_first()

    return CopyKeeper()


def check_frozen(shared: SharedLayers | None, frozen: int, step: str) -> None:
    """Raise TechniqueError if some layers of a group are frozen and others are trained.

    frozen: number of first layers that are not trained.
    """
    for group in shared.groups if shared else ():
        if min(group) < frozen <= max(group):
            raise TechniqueError(
                f"steps.{step}.frozen_layers",
                f"{frozen}, among the shared layers {', '.join(map(str, group))}",
                "shared layers that are all trained or all frozen",
                f"steps.{step}.frozen_layers={min(group)}",
            )
