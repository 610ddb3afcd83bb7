"""Width pruning: remove the least important feed-forward neurons of every layer.

Source: Muralidharan et al. 2024, arXiv 2407.14679, section 2.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.prune.selection.activations import BlockAxis
from tasks.prune.selection.counts import check_count, choose_count
from tasks.prune.selection.narrowing import BlockNarrowing, narrowing_spec
from tasks.prune.selection.shape import Shape
from tasks.shared.model.families import is_mixture
from tasks.shared.technique import Refusal, Spec


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Width(BlockNarrowing):
    """Remove the least important feed-forward neurons, equally many in each layer.

    The result loads in plain transformers and llama.cpp.
    """

    neurons: Annotated[int, Field(ge=0)] = 0
    """Neurons to keep in every layer; overrides `ratio` and `multiple`.  0: by `ratio`."""

    axis: ClassVar[BlockAxis] = "neurons"
    spec: ClassVar[Spec] = narrowing_spec(
        "Removes the least important feed-forward neurons of every layer", "Muralidharan et al. 2024, arXiv 2407.14679"
    )

    def narrowed(self, shape: Shape, kind: str) -> Shape:
        """Return the sizes with fewer neurons."""
        total = shape.intermediate
        if self.neurons:
            return replace(shape, intermediate=check_count("neurons", self.neurons, total))
        return replace(shape, intermediate=choose_count(total, self.ratio, multiple=self.multiple))

    def unsupported(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse mixtures of experts."""
        if is_mixture(config):
            return Refusal("each expert has neurons of its own", "prune/heads or prune/depth")
        return None
