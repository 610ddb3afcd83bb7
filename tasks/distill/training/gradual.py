"""Gradual pruning: weights become zero while the others are trained.

Source: Zhu and Gupta 2017, arXiv 1710.01878, section 3: sparsity rises with the cube of the time that is left, so that most weights go early,
while many can be spared.
"""

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from tasks.distill.training.masks import local_part, plain_name
from tasks.shared.model.prunable import lowest_of_matrix, matrices_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Gradual:
    """Masks that grow during the training; the smallest weights of each matrix go."""

    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of the weights of each trained matrix in the decoder layers that is zero in the end; 0 prunes nothing."""
    begin: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Fraction of the optimizer steps before the first weights go."""
    end: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Fraction of the steps after which all have gone; the rest of the training recovers.  Only epochs after it count as the best one."""
    every: Annotated[int, Field(ge=1)] = 10
    """Optimizer steps from one growth of the masks to the next."""

    @model_validator(mode="after")
    def _ends_after_its_beginning(self) -> Self:
        if self.begin >= self.end:
            raise ValueError(f"begin ({self.begin}) must be smaller than end ({self.end})")
        return self

    def sparsity_at(self, step: int, steps: int) -> float | None:
        """Return the fraction of zeros after an optimizer step; None if the masks stay as they are.

        step: number of steps done, from 1.  steps: of the whole training.
        """
        first, last = self.begin * steps, self.end * steps
        if not self.sparsity or step < first or step > last + self.every:
            return None
        if step < last and step % self.every:
            return None
        left = max(0.0, (last - step) / (last - first))
        return self.sparsity * (1 - left**3)

    def is_done(self, step: int, steps: int) -> bool:
        """Return True once the masks no longer grow."""
        return not self.sparsity or step >= self.end * steps


def grown_names(model: "PreTrainedModel", settings: Gradual) -> frozenset[str]:
    """Return the names of the weights to mask: trained matrices of the decoder layers.

    Raises TechniqueError if the layers have matrices besides.
    """
    if not settings.sparsity:
        return frozenset()
    return frozenset(
        f"{name}.weight" for name, part in matrices_of(model).items() if part.get_parameter("weight").requires_grad
    )


class GrowingZeros:
    """Trainer mixin that lets no epoch count as the best one before the masks are complete.

    gradual: the settings.  grown: names of the weights that they mask.
    """

    gradual: Gradual = Gradual()
    grown: frozenset[str] = frozenset()
    state: Any

    def _determine_best_metric(self, metrics: Any, trial: Any) -> bool:
        if not self.gradual.is_done(self.state.global_step, self.state.max_steps):
            return False
        found: bool = super()._determine_best_metric(metrics, trial)  # type: ignore[misc]
        return found


def zero_grower(trainer: Any) -> "TrainerCallback":
    """Return a callback that adds the smallest weights to the masks as the training goes on.

    It comes before `zero_keeper`, which then sets them to zero.
    """
    from transformers import TrainerCallback

    class ZeroGrower(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            sparsity = trainer.gradual.sparsity_at(state.global_step + 1, state.max_steps)
            if sparsity is None:
                return
            growing = {
                id(weight) for name, weight in trainer.model.named_parameters() if plain_name(name) in trainer.grown
            }
            for weight, zeros in trainer.zeros:
                if id(weight) in growing:
                    scores = local_part(weight.detach()).abs().masked_fill(zeros, 0.0)
                    zeros |= lowest_of_matrix(scores, round(sparsity * scores.numel()))

    return ZeroGrower()
