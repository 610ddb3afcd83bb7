"""Layers of bitsandbytes as transformers loads them: 4-bit levels in blocks, or 8-bit integers.

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


def refuse_without_scales(where: Path, model: "PreTrainedModel") -> None:
    """Raise ModelError for layers whose scales the files lack; transformers would load them with nonsense."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    def lacks_scales(layer: Any) -> bool:
        if isinstance(layer, Linear4bit):
            return getattr(layer.weight, "quant_state", None) is None
        return isinstance(layer, Linear8bitLt) and getattr(layer.weight, "SCB", None) is None

    if without := [name for name, layer in model.named_modules() if lacks_scales(layer)]:
        raise ModelError(
            str(where),
            f"weights quantized by bitsandbytes, but {len(without)} layers have no scales in the files ({shown(without)})",
            "weights and config.json of one save",
            "quantize the original model again; if the weights are dense, remove quantization_config from config.json",
        )


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
        plain.weight = torch.nn.Parameter(dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(dtype))
        plain.bias = layer.bias
        model.set_submodule(name, plain.train(layer.training))
    if packed:
        quantizer: Any = model.hf_quantizer
        quantizer.remove_quantization_config(model)
