"""FLAP: remove the neurons or heads that change least, and keep their mean as a bias.

Source: An et al. 2024, arXiv 2312.11983.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from tasks.prune.heads import Heads
from tasks.prune.selection.activations import BlockAxis, measure_means
from tasks.prune.selection.compensation import add_biases, compensate
from tasks.prune.selection.importance import Criterion
from tasks.prune.selection.layers import Reading
from tasks.prune.selection.narrowing import BlockNarrowing, narrowing_spec
from tasks.prune.selection.picks import Picks
from tasks.prune.selection.shape import Shape
from tasks.prune.width import Width
from tasks.shared.model.families import ALWAYS_BIASED, ATTENTION_BIAS, FEED_FORWARD_BIAS
from tasks.shared.technique import Metrics, Refusal, Spec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BIASES: Mapping[BlockAxis, tuple[str, frozenset[str]]] = {
    "heads": ("attention_bias", ATTENTION_BIAS),
    "neurons": ("mlp_bias", FEED_FORWARD_BIAS),
}
"""Setting that turns on a block's biases, and the families in which its last projection gets one."""
BLOCKS: Mapping[BlockAxis, str] = {"heads": "attention", "neurons": "feed-forward block"}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Flap(BlockNarrowing):
    """Remove neurons, heads or both, equally many in each layer, and keep their mean.

    The mean of the removed units, through the last projection's weights, becomes a bias of that projection.  The setting of the
    configuration that allows it gives biases to the other projections of the block as well: these are zeros.
    """

    criterion: Criterion = "fluctuation"
    """Units that stay.  fluctuation: the largest deviations from their mean, times outgoing weights.  The others are as in prune/width."""
    units: Literal["neurons", "groups", "queries", "both"] = "neurons"
    """Units that go.  neurons: of the feed-forward blocks.  groups: key-value heads with all query heads that share them.
    queries: query heads, equally many of every group.  both: neurons and groups, the same `ratio` of each."""
    compensate: bool = True
    """Add the mean of what the removed units gave to the last projection's bias; needs a family that has one.  false: they are only removed."""

    spec: ClassVar[Spec] = narrowing_spec(
        "Removes the neurons or heads that change least, and keeps what they gave on average as a bias",
        "An et al. 2024, arXiv 2312.11983",
    )

    @property
    def parts(self) -> tuple[BlockNarrowing, ...]:
        """Techniques that remove one kind of units each, to the sizes of this one."""
        sizes: dict[str, Any] = {"ratio": self.ratio, "multiple": self.multiple}
        if self.units == "neurons":
            return (Width(**sizes),)
        if self.units == "queries":
            return (Heads(unit="queries", **sizes),)
        groups = Heads(unit="groups", **sizes)
        return (groups,) if self.units == "groups" else (groups, Width(**sizes))

    @property
    def axes(self) -> tuple[BlockAxis, ...]:
        """Kinds of units that go."""
        return tuple(part.axis for part in self.parts)

    @property
    def passes(self) -> int:
        """Cost of the criterion, and of a pass for the means."""
        return super().passes + int(self.compensate)

    def narrowed(self, shape: Shape, kind: str) -> Shape:
        """Return the sizes with fewer units."""
        for part in self.parts:
            shape = part.narrowed(shape, kind)
        return shape

    def unsupported(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse units that cannot be cut, and last projections without a place for a bias."""
        for part in self.parts:
            if (found := part.unsupported(config)) is not None:
                return found
        missing = self._without_bias(config)
        if not missing:
            return None
        others = [replace(self, units=units) for units in ("neurons", "groups")]
        fits = [f"units={other.units}" for other in others if other._takes(config)]
        blocks = " and ".join(BLOCKS[axis] for axis in missing)
        return Refusal(
            f"the last projection of its {blocks} has no bias in transformers, to keep what the removed units gave on average",
            " or ".join([*fits, "compensate=false"]),
        )

    def _without_bias(self, config: Mapping[str, Any]) -> list[BlockAxis]:
        """Return the axes that need a bias of a last projection which the family does not have."""
        kind = str(config.get("model_type", ""))
        return [axis for axis in self.axes if self.compensate and not has_bias(kind, axis)]

    def _takes(self, config: Mapping[str, Any]) -> bool:
        """Return True if the units can be cut and compensated."""
        cut = all(part.unsupported(config) is None for part in self.parts)
        return cut and not self._without_bias(config)

    def biases(self, kind: str) -> tuple[str, ...]:
        """Return the settings of a family's configuration that turn on the biases."""
        return tuple(BIASES[axis][0] for axis in self.axes if self.compensate and kind in BIASES[axis][1])

    def changed_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the configuration with the sizes that remain and the biases."""
        kind = str(config.get("model_type", ""))
        return {**super().changed_config(config), **dict.fromkeys(self.biases(kind), True)}

    def corrected(
        self, small: "PreTrainedModel", model: "PreTrainedModel", picks: Sequence[Picks], reading: Reading
    ) -> Metrics:
        """Add what the removed units gave on average to the biases, in place."""
        if self.compensate:
            add_biases(small, self.biases(model.config.model_type))
            compensate(small, model, picks, measure_means(model, self.axes, *reading))
        return {}


def has_bias(kind: str, axis: BlockAxis) -> bool:
    """Return True if a family's last projection has a bias, or a setting gives it one."""
    return kind in BIASES[axis][1] or (axis == "neurons" and kind in ALWAYS_BIASED)
