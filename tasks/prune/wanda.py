"""Wanda: weights that matter least with their inputs become zero, the others stay.

Source: Sun et al. 2023, arXiv 2306.11695.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from tasks.prune.masking.choice import lowest_of_groups
from tasks.prune.masking.pruning import Rows, prune, prune_by_layer
from tasks.prune.masking.scores import wanda
from tasks.prune.masking.settings import Calibrated, masking_spec
from tasks.shared.model.input_statistics import column_energy
from tasks.shared.model.masks import clear
from tasks.shared.model.prunable import lowest
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Wanda(Calibrated):
    """Set the weights with the smallest product with their input's norm to zero, row by row."""

    spec: ClassVar[Spec] = masking_spec(
        summary="Sets the weights to zero that matter least with their inputs, by row or N:M; file and speed stay as they are",
        calibration=Port((Kind.CORPUS,)),
        paper="Sun et al. 2023, arXiv 2306.11695",
    )

    @property
    def by_rows(self) -> bool:
        """Scores are comparable within a row only."""
        return True

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the pruned model and masks.json to `out`."""
        return prune(self, inputs, out, run, self.cut, self.calibration_rows)

    def cut(self, model: "PreTrainedModel", ids: Rows, pad_id: int) -> None:
        """Set weights to zero in place."""
        prune_by_layer(model, ids, pad_id, column_energy, self.cut_layer)

    def cut_layer(self, weights: "Mapping[str, Tensor]", energies: "Mapping[str, Tensor]") -> None:
        """Set weights of one layer to zero in place.

        weights: each (out, in).  energies: each (in,), `column_energy` of its inputs.
        """
        for name, weight in weights.items():
            scores = wanda(weight, energies[name])
            count = round(self.sparsity * weight.shape[1])
            clear(weight, lowest_of_groups(scores, self.pattern) if self.pattern else lowest(scores, count))
