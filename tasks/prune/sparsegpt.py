"""SparseGPT: weights become zero column by column, and later columns make up for it.

Source: Frantar and Alistarh 2023, arXiv 2301.00774.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.prune.masking.compensation import by_pattern, by_sparsity, compensated
from tasks.prune.masking.pruning import Rows, prune, prune_by_layer
from tasks.prune.masking.settings import Calibrated, masking_spec
from tasks.shared.model.input_statistics import gram, inverse_factor
from tasks.shared.model.masks import parse_pattern
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SparseGPT(Calibrated):
    """Set weights to zero by the error that remains once others of their row compensate."""

    damping: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Damping added to the Hessian's diagonal, as a fraction of its mean."""
    block_size: Annotated[int, Field(ge=8)] = 128
    """Columns among which zeros are chosen at once, each block having the same sparsity; rounded down to whole groups of a pattern."""

    spec: ClassVar[Spec] = masking_spec(
        summary="Sets weights to zero while others compensate, by blocks of columns or N:M; file and speed stay as they are",
        calibration=Port((Kind.CORPUS,)),
        paper="Frantar and Alistarh 2023, arXiv 2301.00774",
    )

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the pruned model and masks.json to `out`."""
        return prune(self, inputs, out, run, self.cut, self.calibration_rows)

    def cut(self, model: "PreTrainedModel", ids: Rows, pad_id: int) -> None:
        """Set weights to zero, and change the others, in place."""
        prune_by_layer(model, ids, pad_id, gram, self.cut_layer)

    def cut_layer(self, weights: "Mapping[str, Tensor]", products: "Mapping[str, Tensor]") -> None:
        """Prune one layer in place.

        weights: each (out, in).  products: each (in, in); matrices with the same inputs share one, and its factor.

        On one thread: it is thousands of small operations, which threads that wait for each other make slower.
        """
        import torch

        group = parse_pattern(self.pattern)[1] if self.pattern else self.block_size
        choose = by_pattern(self.pattern) if self.pattern else by_sparsity(self.sparsity)
        block = max(group, self.block_size // group * group)
        factors: dict[int, Tensor] = {}
        for matrix in products.values():
            if id(matrix) not in factors:
                factors[id(matrix)] = inverse_factor(matrix, self.damping)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for name, weight in weights.items():
                weight.copy_(compensated(weight.float(), factors[id(products[name])], choose, block, group))
        finally:
            torch.set_num_threads(threads)
