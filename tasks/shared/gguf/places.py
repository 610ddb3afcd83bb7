"""Layer and role of a matrix, by its name in a folder, in a loaded model or in a GGUF file."""

import re

from tasks.shared.errors import TechniqueError

EMBEDDING = "token_embd.weight"
VOCABULARY_TENSORS = (EMBEDDING, "output.weight")
"""Token embedding and head, as GGUF names them."""
VOCABULARY_NAMES = re.compile(r"(embed_tokens|lm_head|wte|embed_in|embed_out)\.weight$")
"""The same, as transformers names them."""
HEAD = re.compile(r"(lm_head|embed_out)\.weight$")
ROLES = ("attention", "gate_up", "down")
"""Roles of a layer's matrices: attention, and the first and last projections of the feed-forward block, experts included."""
OUTER = ("embedding", "head")
Place = tuple[int, str]
"""Index of the layer, and one of ROLES; -1 and one of OUTER."""
IN_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blk)\.(\d+)\.(.+)")
ATTENTION = re.compile(r"attn|attention")
DOWN = re.compile(r"down_proj|\bw2\b|dense_4h_to_h|mlp\.c_proj|ffn_down")


def place_of(name: str) -> Place:
    """Return the place of a matrix.

    Raises TechniqueError for one outside of embedding, head and layers.
    """
    if name in VOCABULARY_TENSORS or VOCABULARY_NAMES.search(name):
        return -1, "head" if name == VOCABULARY_TENSORS[1] or HEAD.search(name) else "embedding"
    found = IN_LAYER.search(name)
    if found is None:
        raise TechniqueError(
            name,
            "a matrix outside of embedding, head and layers",
            "a family that docs/families.md lists",
            "export/gguf, which gives all matrices of the layers one type",
        )
    role = "attention" if ATTENTION.search(found[2]) else "down" if DOWN.search(found[2]) else "gate_up"
    return int(found[1]), role
