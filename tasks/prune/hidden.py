"""Hidden size pruning: remove the least important channels, the same ones everywhere.

Source: Muralidharan et al. 2024, arXiv 2407.14679, section 2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.prune.selection.activations import Axis
from tasks.prune.selection.channels import channel_scores
from tasks.prune.selection.counts import check_count, choose_count
from tasks.prune.selection.importance import Criterion
from tasks.prune.selection.layers import Reading
from tasks.prune.selection.narrowing import Narrowing, check_finite, narrowing_spec
from tasks.prune.selection.norms import correct, gain_offset, hidden_norms
from tasks.prune.selection.picks import Picks
from tasks.prune.selection.shape import Shape
from tasks.shared.model.families import CENTERED, WHOLE_HEADS
from tasks.shared.technique import Metrics, Refusal, Spec

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Hidden(Narrowing):
    """Remove the least important channels of the hidden state from the whole model.

    Embedding, layers and head lose the same ones.  The gains of the norms are corrected, and so is an embedding that the model scales
    by its width.  The head size stays, and the configuration states it.
    """

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Fraction of the channels to remove, rounded as `multiple` says."""
    criterion: Criterion = "activation"
    """Channels that stay.  activation: the largest values at the inputs of blocks and head on the calibration rows.  contribution: the
    largest shares in the outputs of these.  fluctuation: as contribution, for deviations from the mean.  wanda: weights times the norms of
    their inputs.  taylor: the loss changes most, to first order.  magnitude: the largest weights.  random: by the seed.  The last two are
    controls."""
    calibration_rows: Annotated[int, Field(ge=1)] = 32
    """Conversations of the calibration split to measure on: always for the norms, and for the criterion if it reads text."""
    hidden: Annotated[int, Field(ge=0)] = 0
    """Channels to keep; overrides `ratio` and `multiple`.  0: by `ratio`."""

    axis: ClassVar[Axis] = "hidden"
    spec: ClassVar[Spec] = narrowing_spec(
        "Removes the least important channels of the hidden state from the whole model, and corrects its norms",
        "Muralidharan et al. 2024, arXiv 2407.14679",
    )

    def narrowed(self, shape: Shape, kind: str) -> Shape:
        """Return the sizes with fewer channels."""

        def fits(count: int) -> bool:
            return kind not in WHOLE_HEADS or count % shape.heads == 0

        total = shape.hidden
        if self.hidden:
            return replace(shape, hidden=check_count("hidden", self.hidden, total, fits))
        return replace(shape, hidden=choose_count(total, self.ratio, multiple=self.multiple, fits=fits))

    def unsupported(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse norms that subtract the mean over all channels."""
        if config.get("model_type") in CENTERED:
            return Refusal(
                "its norms subtract the mean over all channels, so that removing one changes the others",
                "prune/width or prune/depth",
            )
        return None

    @property
    def passes(self) -> int:
        """Cost of the criterion, and of a pass for the norms."""
        return super().passes + 1

    def scores(
        self, model: "PreTrainedModel", ids: list[list[int]], pad_id: int, seed: int
    ) -> "Mapping[Axis, Sequence[Tensor]]":
        """Return the importance of the channels at every layer, then at the head, (hidden,) each."""
        for name, norm in hidden_norms(model).items():
            gain_offset(name, norm)  # refuses norms that cannot be corrected, before the calibration
        found = channel_scores(model, self.criterion, Reading(ids, self.batch_size, pad_id), seed)
        check_finite(found)
        return {"hidden": found}

    def corrected(
        self, small: "PreTrainedModel", model: "PreTrainedModel", picks: Sequence[Picks], reading: Reading
    ) -> Metrics:
        """Correct norms and embedding in place, and return the extremes of the gains' factors."""
        found = correct(small, model, picks[0].hidden, reading)
        gains = found.gains.values()
        return {"gain_min": min(gains), "gain_max": max(gains), "embedding_scale": found.embedding}
