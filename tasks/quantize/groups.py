"""Groups of weights that share a scale: their layers, their size, and the forecast."""

from dataclasses import replace
from typing import TYPE_CHECKING

from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import SAVED_BYTES, Forecast, Workload, forecast_reading
from tasks.shared.model.widths import GROUP_SIZES, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCALE_BITS = 16
SECONDS_PER_WEIGHT = 5e-7
"""Time to quantize, by measurement on two CPU cores."""


def head_names(model: "PreTrainedModel") -> list[str]:
    """Names of the output head, which stays dense: small models tie it to the embedding."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is head]


def input_sizes(model: "PreTrainedModel") -> dict[str, int]:
    """Return the input size of every quantized linear layer, by name: all but the head.

    Raises TechniqueError if the model has matrices besides them and its embeddings, which would stay dense unnoticed.
    """
    from torch.nn import Embedding, Linear

    linear = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    known = {id(module.weight) for module in model.modules() if isinstance(module, Linear | Embedding)}
    loose = [name for name, weight in model.named_parameters() if weight.dim() > 1 and id(weight) not in known]
    if loose:
        raise TechniqueError(
            type(model).__name__,
            f"{len(loose)} matrices outside of torch.nn.Linear: {shortened(loose)}",
            "a transformer whose layers are torch.nn.Linear",
            "export/gguf, or leave the model dense",
        )
    heads = head_names(model)
    return {name: module.in_features for name, module in linear.items() if name not in heads}


def forecast_packing(work: Workload, bits: int, group_size: int, symmetric: bool) -> Forecast:
    """Forecast a quantization to packed layers with 16-bit scales, bfloat16 embedding and head."""
    size = work.size()
    widths = (size.shape.width, size.shape.query, size.shape.feed_forward)
    fitting = [group for group in GROUP_SIZES if all(width % group == 0 for width in widths)]
    group = group_size or next(iter(fitting), GROUP_SIZES[-1])
    weight = (bits + (SCALE_BITS + (0 if symmetric else bits)) / group) / 8
    packed = replace(size, bytes=weight * (size.parameters - size.outer) + SAVED_BYTES * size.outer)
    return forecast_reading(work, SECONDS_PER_WEIGHT * size.parameters, size.parameters, packed)
