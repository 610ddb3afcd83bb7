"""Comparison of a quantized model with its source, and with the same grid by plain rounding."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@contextmanager
def rounded(model: "PreTrainedModel", arguments: Mapping[str, Any], layers: Collection[str]) -> Iterator[None]:
    """Round weights and inputs of these layers to a scheme's nearest values within a block.

    arguments: llm-compressor's arguments of weights by group or output channel, and of activations by token.  Activations with
    fixed scales stay as they are.
    Scales and all other weights are in bfloat16, as `save_compressed` stores them.  The weights of a module are rounded while it runs, so
    that no second copy of the model is in memory.
    """
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    weights, inputs = (QuantizationArgs(**given) if given else None for given in (arguments["weights"], arguments.get("input_activations")))  # fmt: skip
    assert weights is not None
    parts = {id(model.get_submodule(name)) for name in layers}
    before: dict[int, list[tuple[Any, Tensor]]] = {}

    def round_weights(part: Any, _: tuple[Any, ...]) -> None:
        own = before[id(part)] = [(parameter, parameter.data) for parameter in part.parameters(recurse=False)]
        for parameter, weight in own:
            packed = id(part) in parts and parameter is part.weight
            parameter.data = on_grid(weight, weights) if packed else weight.bfloat16().to(weight.dtype)

    def restore(part: Any, *_: Any) -> None:
        for parameter, weight in before.pop(id(part), ()):
            parameter.data = weight

    def round_inputs(part: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (fake_quantize(given[0], *compute_dynamic_scales_and_zp(given[0], inputs, part), inputs), *given[1:])

    hooks = []
    for part in model.modules():
        if next(part.parameters(recurse=False), None) is not None:
            hooks += [
                part.register_forward_pre_hook(round_weights), part.register_forward_hook(restore, always_call=True)
            ]  # fmt: skip
        if id(part) in parts and inputs is not None and inputs.dynamic:
            hooks.append(part.register_forward_pre_hook(round_inputs))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def on_grid(weight: "Tensor", arguments: "QuantizationArgs") -> "Tensor":
    """Round a weight to the nearest values of its groups or output channels.

    weight: (outputs, inputs).
    arguments: of the scheme; scales are in bfloat16.
    """
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    groups = weight.unflatten(-1, (-1, arguments.group_size or weight.shape[-1]))  # (outputs, groups, size)
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
    return fake_quantize(weight, scale.bfloat16().to(weight.dtype), zero, arguments)


def compare_with_rounding(divergence: float, rounding: float) -> dict[str, float]:
    """Return the figure rounding_kl; warn if calibration is farther from the source.

    divergence, rounding: KL to the source, in nats per token, of the calibrated model and of the same grid by rounding, on the same rows.
    """
    if divergence > rounding:
        log.warning(
            "worse than plain rounding on held-out rows: KL to the source %.3f nats per token, rounding %.3f; "
            "symmetric=false, larger damping, more calibration rows or quantize/rtn may be better",
            divergence,
            rounding,
        )
    return {"rounding_kl": rounding}
