"""Arithmetic that the hardware is fast in."""

from typing import Literal

from tasks.shared.cpu import is_bfloat16_fast
from tasks.shared.model.loading import Dtype

DtypeSetting = Dtype | Literal["auto"]
"""A data type as settings name it.  auto: what `fast_dtype` chooses."""


def fast_dtype(device: str) -> Dtype:
    """Return bfloat16 where a device computes faster in it than in float32, else float32.

    device: "cpu" or "cuda".
    """
    if device == "cuda":
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if is_bfloat16_fast() else "float32"


def chosen_dtype(setting: DtypeSetting, device: str) -> Dtype:
    """Return the data type that a setting means on a device."""
    return fast_dtype(device) if setting == "auto" else setting
