"""Magnitude pruning: the smallest weights become zero.

Source: Han et al. 2015, arXiv 1506.02626.  It needs no data and is the baseline for techniques that read activations.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from tasks.prune.masking.choice import Cut, lowest_of_groups
from tasks.prune.masking.pruning import prune
from tasks.prune.masking.scores import magnitude
from tasks.prune.masking.settings import Masking, masking_spec
from tasks.shared.model.masks import clear
from tasks.shared.model.prunable import lowest_of_matrix, matrices_of, view_of
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Magnitude(Masking):
    """Set the smallest absolute weights to zero, in every matrix or over all of them."""

    scope: Literal["matrix", "model"] = "matrix"
    """Weights that are compared: those of one matrix, so that all matrices become equally sparse, or those of all matrices."""

    spec: ClassVar[Spec] = masking_spec(
        summary="Sets the smallest weights to zero, by matrix, over the model or N:M; file and speed stay as they are",
        calibration=Port((Kind.CORPUS,), optional=True),
        paper="Han et al. 2015, arXiv 1506.02626",
    )

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the pruned model and masks.json to `out`."""
        return prune(self, inputs, out, run, self.cut)

    def cut(self, model: "PreTrainedModel", *_: Any) -> None:
        """Set weights to zero in place."""
        weights = [view_of(part) for part in matrices_of(model).values()]
        total = sum(weight.numel() for weight in weights)
        everywhere = None
        if self.scope == "model" and not self.pattern and (count := round(self.sparsity * total)):
            everywhere = Cut(lambda: map(magnitude, weights), count)
        for weight in weights:
            scores = magnitude(weight)
            if self.pattern:
                zeros = lowest_of_groups(scores, self.pattern)
            elif everywhere is not None:
                zeros = everywhere.take(scores)
            else:
                zeros = lowest_of_matrix(scores, round(self.sparsity * weight.numel()))
            clear(weight, zeros)
