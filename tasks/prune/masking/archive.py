"""Size of weights in a compressed archive, where alone zeros and copies save room."""

import zlib
from typing import TYPE_CHECKING

from tasks.shared.model.shared_layers import digest_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEVEL = 1
"""zlib's fastest level: bits of weights look random, so that higher levels gain little."""
CHUNK = 1 << 22
"""Weights compressed at once."""


def archived_bytes(model: "PreTrainedModel", distinct: bool = False) -> int:
    """Return the bytes of a model's weights in bfloat16, compressed by zlib, tied ones once.

    distinct: also count copies once, as an archive does that finds them.  By itself zlib, and so a zip file, does not: it looks back
    32 KB only.
    """
    import torch

    packer, total = zlib.compressobj(LEVEL), 0
    seen: set[str] = set()
    for weight in model.parameters():
        if distinct and (digest := digest_of(weight)) in seen:
            continue
        if distinct:
            seen.add(digest)
        for part in weight.detach().flatten().split(CHUNK):
            total += len(packer.compress(part.to(torch.bfloat16).cpu().view(torch.uint8).numpy().tobytes()))
    return total + len(packer.flush())
