"""Weights that a training put on the quantizer's grid: their integers stay as they are."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks.shared.model.grids import LEAST, GridName, find_levels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@contextmanager
def grid_kept(model: "PreTrainedModel", weights: Mapping[str, Any], layers: Collection[str]) -> Iterator[None]:
    """Keep, over a quantization in the block, the scales of layers that are on its grid.

    Scales from extremes, as the library takes them, would put the largest magnitude at 7.5 steps, where no weight of the grid is, and
    round all others anew.

    weights: llm-compressor's arguments of 4- or 8-bit weights by group.
    """
    name: GridName = "int4_symmetric" if weights["symmetric"] else "int4_asymmetric"
    found = {}
    for layer in layers if weights["num_bits"] == 4 else ():
        source: Any = model.get_submodule(layer)
        groups = source.weight.detach().float().unflatten(-1, (-1, weights["group_size"]))
        if (levels := find_levels(groups, name)) is not None:
            found[layer] = levels
    yield
    for layer, (scale, low, _) in found.items():
        part: Any = model.get_submodule(layer)
        part.weight_scale.data = scale[..., 0].to(part.weight_scale.dtype)
        if not weights["symmetric"]:
            part.weight_zero_point.data = (LEAST - low[..., 0]).to(part.weight_zero_point.dtype)
    if found:
        log.info("%d of %d layers are on the grid already: their integers stay as they are", len(found), len(layers))
