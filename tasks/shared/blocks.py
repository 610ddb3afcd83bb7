"""Least-squares scales for GGUF's 4-bit blocks: where to round a weight so that the block's error is smallest."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 32
LEVELS = 8
CANDIDATES = 24
ROWS_AT_ONCE = 1 << 16


def nearest_q4_0(weight: "Tensor", importance: "Tensor | None" = None) -> "Tensor":
    """The point of Q4_0's grid (32 weights share a half-precision scale d; each is d * -8 to d * 7) near `weight`.

    weight: (out, in), any float dtype; 32 divides `in`.  importance: (in,), >= 0, the mean squared input of each column.
    Returns float32 of the same shape, whose largest weight per block sits at -8 d: plain Q4_0 rounding reproduces it exactly.
    Plain rounding puts the block's largest weight there as it is; this tries scales from 0.7 to 1.06 of that one and keeps
    the one with the least importance-weighted squared error, so that error is never larger.

    Do not use it for a model's weights without their importance: on a 135M model, layers at 4.5 bits, KL to the source was
    0.345 nats with plain rounding, 0.181 with fitted scales and measured importance, but 0.521 with all columns alike.
    """
    import torch

    blocks = weight.float().reshape(-1, BLOCK)
    columns = torch.ones(weight.shape[-1]) if importance is None else importance.float().clamp(min=1e-12)
    weights = columns.reshape(1, -1, BLOCK).expand(weight.shape[0], -1, -1).reshape(-1, BLOCK)
    parts = [
        fit_blocks(part, factor)
        for part, factor in zip(blocks.split(ROWS_AT_ONCE), weights.split(ROWS_AT_ONCE), strict=True)
    ]
    return torch.cat(parts).reshape(weight.shape)


def fit_blocks(blocks: "Tensor", weights: "Tensor") -> "Tensor":
    """Blocks and their weights, both (blocks, 32), float32; returns the rounded blocks, float32."""
    import torch

    peak = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))  # (blocks, 1), signed
    best, least = torch.zeros_like(blocks), torch.full_like(peak, torch.inf)
    for factor in [1.0, *torch.linspace(0.7, 1.06, CANDIDATES).tolist()]:
        scale = (peak * factor / -LEVELS).half().float()
        safe = torch.where(scale == 0, torch.ones_like(scale), scale)
        rounded = (blocks / safe).round().clamp(-LEVELS, LEVELS - 1) * scale
        error = (weights * (rounded - blocks) ** 2).sum(1, keepdim=True)
        better = error < least
        best, least = torch.where(better, rounded, best), torch.where(better, error, least)
    return best
