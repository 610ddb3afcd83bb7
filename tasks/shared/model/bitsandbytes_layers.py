"""Layers of bitsandbytes as transformers loads them: 4-bit levels, or 8-bit integers.

Importing this module does not import bitsandbytes, which is an optional package.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import ModelError
from tasks.shared.model.weight_files import shown

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ADVICE = ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions")
"""Loggers of advice to install another package, and of a warning in every call of an 8-bit layer that its inputs become float16."""


def loading_options(device: str) -> dict[str, Any]:
    """Return the options that load such a folder to a device, and silence the library's advice.

    Without them transformers takes the first GPU, whatever the device.
    """
    for name in ADVICE:
        logging.getLogger(name).setLevel(logging.ERROR)
    return {"device_map": {"": device}}


def refuse_broken_layers(where: Path, model: "PreTrainedModel") -> None:
    """Raise ModelError for layers without scales, with infinite ones, or of another shape.

    Transformers loads such layers without a word.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    faults: dict[str, list[str]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit | Linear8bitLt) and (fault := _fault(layer)):
            faults.setdefault(fault, []).append(name)
    if faults:
        found = "; ".join(f"{len(names)} layers {fault} ({shown(names)})" for fault, names in faults.items())
        raise ModelError(
            str(where),
            f"weights quantized by bitsandbytes, but {found}",
            "weights and config.json of one save",
            "quantize the original model again; if the weights are dense, remove quantization_config from config.json",
        )


def _fault(layer: Any) -> str:
    """Return what is wrong with a layer's weights; empty if nothing is.

    Scales that are 8-bit numbers themselves are always finite, and what they are scaled by shows in the unpacked weights.
    """
    weight, wanted = layer.weight, (layer.out_features, layer.in_features)
    state = getattr(weight, "quant_state", None)
    scales = getattr(weight, "SCB", None) if state is None else state.absmax
    if scales is None:
        return "have no scales in the files"
    shape = tuple(weight.shape if state is None else state.shape)
    halves = weight.numel() * weight.element_size() * 2
    if shape != wanted or (state is not None and halves != wanted[0] * wanted[1]):
        return "have another shape in the files"
    return "" if bool(scales.isfinite().all()) else "have scales that are not finite"


def mixes_rows(model: "PreTrainedModel") -> bool:
    """Return True if an answer depends on the rows beside it: LLM.int8.

    A channel with an outlier in any row of a pass is kept out of the integers in all of them.
    """
    return bool(getattr(model, "is_loaded_in_8bit", False))


def unpack_levels(model: "PreTrainedModel", dtype: "torch.dtype") -> None:
    """Replace 4-bit layers by plain ones with the same weights, in place.

    The library's own layers compute the same products from the levels, on some CPUs only in multiples of 32 outputs.
    8-bit layers stay: they round their inputs, too, which is a part of what the model answers.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    packed = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Linear4bit)]
    for name, layer in packed:
        with torch.device("meta"):
            plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        levels: Any = layer.weight
        plain.weight = torch.nn.Parameter(dequantize_4bit(levels.data, levels.quant_state).to(dtype))
        plain.bias = layer.bias
        model.set_submodule(name, plain.train(layer.training))
    if packed:
        quantizer: Any = model.hf_quantizer
        quantizer.remove_quantization_config(model)
        model.is_loaded_in_4bit = False  # type: ignore[assignment]
