"""Head pruning: remove the least important attention heads of every layer.

Source: Michel et al. 2019, arXiv 1905.10650; by activations as in Muralidharan et al. 2024, arXiv 2407.14679, section 2.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.prune.selection.activations import BlockAxis
from tasks.prune.selection.counts import check_count, choose_count
from tasks.prune.selection.narrowing import BlockNarrowing, narrowing_spec
from tasks.prune.selection.shape import Shape
from tasks.shared.model.families import FUSED, JOINT_NORMS, WHOLE_HEADS
from tasks.shared.technique import Refusal, Spec


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Heads(BlockNarrowing):
    """Remove the least important attention heads, equally many in each layer.

    Every query head keeps the key-value head that it was trained with.  The head size stays, and the configuration states it.
    """

    unit: Literal["groups", "queries"] = "groups"
    """Units that go.  groups: key-value heads with all query heads that share them, which makes the cache smaller as well.
    queries: query heads, equally many of every group."""
    kept: Annotated[int, Field(ge=0)] = 0
    """Units to keep in every layer: key-value heads, or query heads of every group; overrides `ratio` and `multiple`.  0: by `ratio`."""

    axis: ClassVar[BlockAxis] = "heads"
    spec: ClassVar[Spec] = narrowing_spec(
        "Removes the least important attention heads of every layer, whole groups or query heads",
        "Michel et al. 2019, arXiv 1905.10650",
    )

    def narrowed(self, shape: Shape, kind: str) -> Shape:
        """Return the sizes with fewer heads."""
        whole = self.unit == "groups"
        total, others = (shape.kv_heads, shape.group) if whole else (shape.group, shape.kv_heads)

        def fits(count: int) -> bool:
            return kind not in WHOLE_HEADS or shape.hidden % (count * others) == 0

        size = others * shape.head_dim
        count = (
            check_count("kept", self.kept, total, fits)
            if self.kept
            else choose_count(total, self.ratio, size, self.multiple, fits)
        )
        return replace(shape, heads=count * others, kv_heads=count if whole else shape.kv_heads)

    def unsupported(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse fused projections, and norms over all heads together."""
        kind = config.get("model_type")
        if kind in FUSED:
            return Refusal(
                "query, key and value share one projection, which has no axis of heads to cut",
                "prune/width or prune/depth",
            )
        if kind in JOINT_NORMS:
            return Refusal(
                "its norms of queries and keys are over all heads together, so that removing one changes the others",
                "prune/width or prune/depth",
            )
        return None
