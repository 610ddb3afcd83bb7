"""From conversations to token ids, labels and batches."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.distill.losses.answers import IGNORED
from tasks.shared.chat import answer_tokens
from tasks.shared.errors import DataError
from tasks.shared.rows import Row

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Encoded = dict[str, Any]
"""A conversation: `input_ids` and `labels` (IGNORED but in the final answer), and whatever an objective adds to find its own
targets by: numbers and lists of numbers."""


def split_groups(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Training and validation rows, no phrasing group in both; a share above 0 keeps at least one group.

    Raises DataError if too few rows remain to train on.
    """
    groups = sorted({row.group for row in rows})
    random.Random(seed).shuffle(groups)
    kept = set(groups[: max(1, math.floor(share * len(groups))) if share else 0])
    training = [row for row in rows if row.group not in kept]
    if len(training) < 2:
        raise DataError(
            "traces/train.jsonl",
            f"{len(rows)} rows in {len(groups)} phrasing groups",
            "at least two rows to train on",
            "more data, or distill validation=0",
        )
    return training, [row for row in rows if row.group in kept]


def encode(rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", max_tokens: int) -> list[Encoded]:
    """Token ids and labels of each conversation; labels are IGNORED everywhere but in the final answer.

    Raises DataError naming the rows that have no answer, or are longer than `max_tokens`.
    """
    if silent := [row.id for row in rows if row.messages[-1].role != "assistant" or not row.answer.strip()]:
        raise DataError(
            "traces/train.jsonl",
            f"{len(silent)} conversations have no answer: {', '.join(silent[:5])}",
            "a last message of the assistant, with something in it",
            "leave these rows out, or answer them (a traces step)",
        )
    encoded = []
    long: list[str] = []
    for row in rows:
        ids, spoken = answer_tokens(tokenizer, [message.model_dump() for message in row.messages])
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
    """A batch: `input_ids`, `labels` and `attention_mask`, (batch, tokens), padded on the right; one number a row stays (batch,)."""
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
