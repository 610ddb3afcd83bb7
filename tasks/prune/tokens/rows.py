"""Rows of a model that belong to tokens: embedding, head, ids in its configurations."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import TechniqueError
from tasks.shared.model.layout import LAYOUTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ID_LISTS = ("suppress_tokens", "begin_suppress_tokens")
POSITIONS = {layout.positions for layout in LAYOUTS}
"""Tables with a row per position, which may be as many as the tokens."""
ID_PHRASES = ("bad_words_ids", "force_words_ids")


def token_rows(model: "PreTrainedModel") -> int:
    """Number of rows of the embedding.

    Raises TechniqueError if another module has a row per token too, or the head has a different number of rows.
    """
    from torch.nn import Embedding

    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    where = type(model).__name__
    rows = embedding.weight.shape[0]
    others = [
        name
        for name, part in model.named_modules()
        if isinstance(part, Embedding)
        and part is not embedding
        and part.num_embeddings == rows
        and name not in POSITIONS
    ]
    if others:
        raise TechniqueError(
            where, f"more tables with a row per token: {', '.join(others)}", "one embedding and one head"
        )
    if head is None or head.weight.shape[0] != rows:
        got = "no output head" if head is None else f"{head.weight.shape[0]} rows in the head, {rows} in the embedding"
        raise TechniqueError(where, got, "a causal language model with a row per token in both")
    return int(rows)


def keep_rows(model: "PreTrainedModel", old_ids: Sequence[int]) -> None:
    """Keep these rows of embedding and head, in place and in this order; a tied head stays tied."""
    import torch
    from torch.nn import Parameter

    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    tied = head.weight is embedding.weight
    chosen = torch.tensor(old_ids, device=embedding.weight.device)
    embedding.weight = Parameter(embedding.weight.detach()[chosen])  # (kept, hidden)
    embedding.num_embeddings, embedding.padding_idx = len(old_ids), None
    head.weight = embedding.weight if tied else Parameter(head.weight.detach()[chosen])
    head.out_features = len(old_ids)
    if head.bias is not None:
        head.bias = Parameter(head.bias.detach()[chosen])
    model.config.vocab_size = len(old_ids)
    parts: list[Any] = [model, model.base_model]
    for part in parts:
        if hasattr(part, "vocab_size"):
            part.vocab_size = len(old_ids)


def renumber(settings: Any, new: Mapping[int, int]) -> None:
    """Replace every token id in a configuration by its new id, in place; None if dropped.

    Raises TechniqueError for a generation configuration that weights sequences of tokens.
    """
    if getattr(settings, "sequence_bias", None):
        raise TechniqueError(
            "generation_config.sequence_bias", "weights for sequences of token ids", "none", "take it out"
        )
    for name, value in settings.to_dict().items():
        if name.endswith(("_token_id", "_token_index")) or name in ID_LISTS:
            if isinstance(value, list | tuple):
                setattr(settings, name, [new[old] for old in value if old in new] or None)
            elif value is not None:
                setattr(settings, name, new.get(value))
        elif name in ID_PHRASES and value:
            setattr(
                settings, name, [[new[old] for old in phrase] for phrase in value if new.keys() >= set(phrase)] or None
            )
