"""Comparison of a quantized model with its source, and with the same grid by plain rounding."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks.shared.model.agreement import token_agreement

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@contextmanager
def rounded(model: "PreTrainedModel", arguments: Mapping[str, Any], layers: Collection[str]) -> Iterator[None]:
    """Round weights and inputs of these layers to a scheme's nearest values within a block.

    arguments: llm-compressor's arguments of weights by group or output channel, and of activations by token.  Activations with
    fixed scales stay as they are.
    Scales and all other weights are in bfloat16, as `save_compressed` stores them.  Needs memory for one more copy of the model.
    """
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams, compute_dynamic_scales_and_zp

    weights, inputs = (QuantizationArgs(**given) if given else None for given in (arguments["weights"], arguments.get("input_activations")))  # fmt: skip
    assert weights is not None
    parts = [model.get_submodule(name) for name in layers]
    before = [(parameter, parameter.data) for parameter in model.parameters()] if parts else []

    def round_inputs(part: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (fake_quantize(given[0], *compute_dynamic_scales_and_zp(given[0], inputs, part), inputs), *given[1:])

    hooks = [part.register_forward_pre_hook(round_inputs) for part in parts if inputs is not None and inputs.dynamic]
    own = {id(part.weight) for part in parts}
    try:
        for parameter, weight in before:
            if id(parameter) not in own:
                parameter.data = weight.bfloat16().to(weight.dtype)
                continue
            groups = weight.unflatten(-1, (-1, weights.group_size or weight.shape[-1]))  # (out, groups, size)
            scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), weights)
            parameter.data = fake_quantize(weight, scale.bfloat16().to(weight.dtype), zero, weights)
        yield
    finally:
        for parameter, weight in before:
            parameter.data = weight
        for hook in hooks:
            hook.remove()


def compare_with_rounding(
    divergence: float, rounded_logits: Sequence["Tensor"], source_logits: Sequence["Tensor"]
) -> dict[str, float]:
    """Return rounding_kl: KL to the source, in nats per token, of the same grid by rounding.

    divergence: KL of the calibrated model on the same rows.  A warning tells if it is the larger one.
    rounded_logits, source_logits: (length, vocabulary) per row.
    """
    import torch

    kl, _ = token_agreement(torch.cat(list(source_logits)), torch.cat(list(rounded_logits)))
    rounding = float(kl.mean())
    if divergence > rounding:
        log.warning(
            "worse than plain rounding on held-out rows: KL to the source %.3f nats per token, rounding %.3f; "
            "symmetric=false, larger damping, more calibration rows or quantize/rtn may be better",
            divergence,
            rounding,
        )
    return {"rounding_kl": rounding}
