"""Arithmetic that the hardware is fast in."""

from tasks.shared.cpu import is_bfloat16_fast
from tasks.shared.model.loading import Dtype


def fast_dtype(device: str) -> Dtype:
    """Return bfloat16 where a device computes faster in it than in float32, else float32.

    device: "cpu" or "cuda".
    """
    if device == "cuda":
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if is_bfloat16_fast() else "float32"
