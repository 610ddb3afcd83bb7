"""Calibration batches: rendered and tokenized conversations of the calibration split."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.shared.formats.rows import Row, read_rows, spread

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

CALIBRATION_FILE = "calibration.jsonl"


def calibration_rows(corpus: Path, count: int) -> list[Row]:
    """Read `count` evenly spaced rows of a corpus folder's calibration split; 0 means all.

    Raises DataError if the file is missing or has bad lines.
    """
    return spread(read_rows(corpus / CALIBRATION_FILE), count)


def calibration_ids(tokenizer: "PreTrainedTokenizerBase", rows: list[Row], max_tokens: int) -> list[list[int]]:
    """Token ids of each conversation with its answer, truncated to `max_tokens`.

    They are rendered by the chat template; for a base model, which has none, as plain text.
    """
    from tasks.shared.model.prompts import render

    texts = [render(tokenizer, row.chat, add_generation_prompt=False, tools=row.tools) for row in rows]
    return [tokenizer(text, add_special_tokens=False)["input_ids"][:max_tokens] for text in texts]


def batches(ids: list[list[int]], batch_size: int, pad_id: int) -> Iterator[dict[str, "Tensor"]]:
    """Yield batches of rows of similar length, padded on the right.

    Each batch has input_ids and attention_mask, both (batch, length), int64.
    """
    import torch

    order = sorted(ids, key=len)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = max(len(row) for row in chosen)
        padded = torch.tensor([row + [pad_id] * (width - len(row)) for row in chosen])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in chosen])
        yield {"input_ids": padded, "attention_mask": mask}
