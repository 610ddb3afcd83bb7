"""Column importance of linear weights: mean squared inputs on calibration conversations."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks.shared.progress import track

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def input_energy(model: "PreTrainedModel", ids: Sequence[Sequence[int]]) -> dict[str, "Tensor"]:
    """Return the mean squared input per column of every linear layer, by weight name.

    ids: token ids per row, processed one row at a time without padding.  Returns (in,), float32, per weight: the diagonal of
    GPTQ's Hessian.  With uncorrelated inputs, a rounded weight adds this times its squared error to the layer's output error.
    """
    import torch

    sums: dict[str, Tensor] = {}
    tokens = sum(map(len, ids))

    def watch(name: str) -> Any:
        def hook(_: Any, args: tuple[Any, ...], output: Any) -> None:
            energy = args[0].float().square().flatten(0, -2).sum(0).cpu()
            sums[name] = sums[name] + energy if name in sums else energy

        return hook

    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    handles = [module.register_forward_hook(watch(f"{name}.weight")) for name, module in linear]
    try:
        with torch.inference_mode():
            for row in track(ids, "importance", len(ids)):
                model.model(torch.tensor([list(row)], device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {name: energy / tokens for name, energy in sums.items()}
