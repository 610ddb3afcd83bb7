"""Groups of weights that share a scale: their layers, their size, and the forecast."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import SAVED_BYTES, Forecast, Workload, forecast_reading

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROUP_SIZES = (128, 64, 32)
SCALE_BITS = 16
SECONDS_PER_WEIGHT = 5e-7
"""Time to quantize, by measurement on two CPU cores."""
SHOWN = 12


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


def shortened(names: list[str]) -> str:
    """Join names; only the first dozen of many."""
    return ", ".join(names[:SHOWN]) + (
        f" and {len(names) - SHOWN} more of the same kinds" if len(names) > SHOWN else ""
    )


def choose_group_size(sizes: Mapping[str, int], wanted: int = 0) -> int:
    """Return the number of weights that share one scale.

    wanted: as set; 0 takes the largest of 128, 64 and 32 that divides every layer's input size.
    Raises TechniqueError that lists every layer whose input size is not a multiple.
    """
    if not sizes:
        raise TechniqueError(
            "model", "no linear layer besides the head", "a transformer whose layers are torch.nn.Linear"
        )
    fitting = [group for group in GROUP_SIZES if all(size % group == 0 for size in sizes.values())]
    if wanted == 0 and fitting:
        return fitting[0]
    group = wanted or GROUP_SIZES[-1]
    bad = [f"{name} (in={size})" for name, size in sizes.items() if size % group]
    if not bad:
        return group
    widths = ", ".join(str(size) for size in sorted({size for size in sizes.values() if size % group}))
    other = f"group_size={fitting[0]} (or 0, which chooses it)" if fitting else f"a group_size that divides {widths}"
    raise TechniqueError(
        "group_size",
        f"{group} does not divide {len(bad)} layers: {shortened(bad)}",
        f"a divisor of every input size ({widths})",
        f"{other}, or leave the model dense and export it to GGUF q8_0",
    )


def weight_recipe(bits: int, group_size: int, symmetric: bool, heads: list[str]) -> dict[str, Any]:
    """Return llm-compressor's arguments for integer groups in all linear layers but the head."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=group_size)
    return {"config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}, "ignore": heads}


def forecast_packing(work: Workload, bits: int, group_size: int, symmetric: bool) -> Forecast:
    """Forecast a quantization to packed layers with 16-bit scales, bfloat16 embedding and head."""
    size = work.size()
    widths = (size.shape.width, size.shape.query, size.shape.feed_forward)
    fitting = [group for group in GROUP_SIZES if all(width % group == 0 for width in widths)]
    group = group_size or next(iter(fitting), GROUP_SIZES[-1])
    weight = (bits + (SCALE_BITS + (0 if symmetric else bits)) / group) / 8
    packed = replace(size, bytes=weight * (size.parameters - size.outer) + SAVED_BYTES * size.outer)
    return forecast_reading(work, SECONDS_PER_WEIGHT * size.parameters, size.parameters, packed)
