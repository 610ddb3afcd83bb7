"""Comparison of a quantized model with its source, and with the same grid by plain rounding."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from tasks.shared.model.grids import GridName, own_grid, round_to_grid

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@contextmanager
def changed_while_running(
    model: "PreTrainedModel", layers: Collection[str], change: Callable[["Tensor", bool], "Tensor"]
) -> Iterator[None]:
    """Run the model with changed weights within a block.

    The weights of a module are changed while it runs, so that no second copy of the model is in memory.

    layers: names of linear layers.
    change: (weight, whether it is that of one of these layers) -> the weight to run with.
    """
    parts = {id(model.get_submodule(name)) for name in layers}
    before: dict[int, list[tuple[Any, Tensor]]] = {}

    def put(part: Any, _: tuple[Any, ...]) -> None:
        own = before[id(part)] = [(parameter, parameter.data) for parameter in part.parameters(recurse=False)]
        for parameter, weight in own:
            parameter.data = change(weight, id(part) in parts and parameter is part.weight)

    def restore(part: Any, *_: Any) -> None:
        for parameter, weight in before.pop(id(part), ()):
            parameter.data = weight

    hooks = []
    for part in model.modules():
        if next(part.parameters(recurse=False), None) is not None:
            hooks += [part.register_forward_pre_hook(put), part.register_forward_hook(restore, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def rounded_to_levels(
    model: "PreTrainedModel", name: GridName, layers: Collection[str]
) -> AbstractContextManager[None]:
    """Round weights of these layers to the nearest levels of a llama.cpp grid within a block.

    All other weights stay as they are: `quantize/gptq_levels` writes them in float32.
    """

    def change(weight: "Tensor", chosen: bool) -> "Tensor":
        grid = own_grid(name, weight.shape[-1]) if chosen else None
        return weight if grid is None else round_to_grid(weight.float(), grid).to(weight.dtype)

    return changed_while_running(model, layers, change)


@contextmanager
def rounded(model: "PreTrainedModel", arguments: Mapping[str, Any], layers: Collection[str]) -> Iterator[None]:
    """Round weights and inputs of these layers to a scheme's nearest values within a block.

    arguments: llm-compressor's arguments of weights by group or output channel, and of activations by token.  Activations with
    fixed scales stay as they are.
    Scales and all other weights are in bfloat16, as `save_compressed` stores them.
    """
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    weights, inputs = (QuantizationArgs(**given) if given else None for given in (arguments["weights"], arguments.get("input_activations")))  # fmt: skip
    assert weights is not None

    def change(weight: "Tensor", packed: bool) -> "Tensor":
        return on_grid(weight, weights) if packed else weight.bfloat16().to(weight.dtype)

    def round_inputs(part: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (fake_quantize(given[0], *compute_dynamic_scales_and_zp(given[0], inputs, part), inputs), *given[1:])

    moving = [model.get_submodule(name) for name in layers] if inputs is not None and inputs.dynamic else []
    hooks = [part.register_forward_pre_hook(round_inputs) for part in moving]
    try:
        with changed_while_running(model, layers, change):
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


def compare_with_rounding(
    divergence: float,
    rounding: float,
    ways: str = "symmetric=false, larger damping, more calibration rows or quantize/rtn",
) -> dict[str, float]:
    """Return the figure rounding_kl; warn if calibration is farther from the source.

    divergence, rounding: KL to the source, in nats per token, of the calibrated model and of the same grid by rounding, on the same rows.
    ways: what may be better, for the warning.
    """
    if divergence > rounding:
        log.warning(
            "worse than plain rounding on held-out rows: KL to the source %.3f nats per token, rounding %.3f; %s may be better",
            divergence,
            rounding,
            ways,
        )
    return {"rounding_kl": rounding}
