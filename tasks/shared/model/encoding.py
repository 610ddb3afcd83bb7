"""Conversion of conversations to token ids, labels and batches."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import DataError
from tasks.shared.formats.rows import Row
from tasks.shared.model.prompts import answer_tokens

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Encoded = dict[str, Any]
"""A conversation: `input_ids`, `labels` (IGNORED except in the final answer), and numbers or lists of numbers by which an objective
finds its own targets."""


def encode(rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", max_tokens: int) -> list[Encoded]:
    """Token ids and labels of each conversation; labels are IGNORED except in the final answer.

    Raises DataError that lists rows without an answer or longer than `max_tokens`.
    """
    if silent := [row.id for row in rows if row.messages[-1].role != "assistant" or not row.answer.strip()]:
        raise DataError(
            "traces/train.jsonl",
            f"{len(silent)} conversations have no answer: {', '.join(silent[:5])}",
            "a last message by the assistant that is not empty",
            "remove these rows, or generate answers (a traces step)",
        )
    encoded = []
    long: list[str] = []
    for row in rows:
        ids, spoken = answer_tokens(tokenizer, row.chat)
        if len(ids) > max_tokens:
            long.append(f"{row.id} ({len(ids)})")
        encoded.append(
            {"input_ids": ids, "labels": [token if mine else IGNORED for token, mine in zip(ids, spoken, strict=True)]}
        )
    if long:
        raise DataError(
            "traces/train.jsonl",
            f"{len(long)} conversations are too long: {', '.join(long[:5])}",
            f"at most {max_tokens} tokens",
            "raise max_tokens or shorten them",
        )
    return encoded


def collate(rows: Sequence[Mapping[str, Any]], pad: int) -> "dict[str, Tensor]":
    """Collate rows into a batch, padded on the right.

    Returns `input_ids`, `labels`, `attention_mask` and other lists as (batch, tokens); single numbers as (batch,).
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    fill = {"input_ids": pad, "labels": IGNORED}
    batch: dict[str, Tensor] = {}
    for name, first in rows[0].items():
        if isinstance(first, Sequence):
            columns = [torch.tensor(row[name]) for row in rows]
            batch[name] = pad_sequence(columns, batch_first=True, padding_value=fill.get(name, 0))
        else:
            batch[name] = torch.tensor([row[name] for row in rows])
    whole = [torch.ones(len(row["input_ids"]), dtype=torch.long) for row in rows]
    batch["attention_mask"] = pad_sequence(whole, batch_first=True)
    return batch


IGNORED = -100
"""Label of a token that is excluded from the loss, by torch's convention."""


def counted(hidden: "Tensor", labels: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Select the hidden states that predict a labeled token, and these tokens.

    hidden: (batch, tokens, width), the last layer's output.
    labels: (batch, tokens), IGNORED at tokens without a label.
    Returns (counted, width) and (counted,), row by row; the state at position t predicts the token at t + 1.
    """
    following = labels[:, 1:]
    mask = following != IGNORED
    return hidden[:, :-1][mask], following[mask]
