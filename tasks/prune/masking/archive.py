"""Size of weights in a compressed archive, where alone zeros save room."""

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEVEL = 1
"""zlib's fastest level: bits of weights look random, so that higher levels gain little."""
CHUNK = 1 << 22
"""Weights compressed at once."""


def archived_bytes(model: "PreTrainedModel") -> int:
    """Return the bytes of a model's weights in bfloat16, compressed by zlib, tied ones once."""
    import torch

    packer, total = zlib.compressobj(LEVEL), 0
    for weight in model.parameters():
        for part in weight.detach().flatten().split(CHUNK):
            total += len(packer.compress(part.to(torch.bfloat16).cpu().view(torch.uint8).numpy().tobytes()))
    return total + len(packer.flush())
