"""Calibration batches: rendered and tokenized conversations of the calibration split."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.shared.formats.rows import Row, read_rows, spread

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
CALIBRATION_FILE = "calibration.jsonl"


def calibration_rows(corpus: Path, count: int) -> list[Row]:
    """Read `count` evenly spaced rows of a corpus folder's calibration split; 0 means all.

    A warning tells if the split has fewer.
    Raises DataError if the file is missing or has bad lines.
    """
    rows = read_rows(corpus / CALIBRATION_FILE)
    if len(rows) < count:
        log.warning("reads %d calibration rows instead of %d: the split has no more", len(rows), count)
    return spread(rows, count)


def split_calibration(corpus: Path, count: int, checks: int) -> tuple[list[Row], list[Row]]:
    """Choose evenly spaced calibration rows, and rows of the same split to check the result on.

    count: rows to calibrate on; 0 means none.
    checks: rows to check on.  They are held out of the calibration; in a split too small for both, they take at most a quarter.
    Only a split of a single row serves both.  A warning tells if rows are fewer than wanted, or shared.
    """
    rows = read_rows(corpus / CALIBRATION_FILE)
    if count == 0:
        return [], spread(rows, checks)
    reserved = min(checks, max(1, len(rows) // 4))
    taken = min(count, max(1, len(rows) - reserved))
    places = spread(range(len(rows)), taken)
    held = [row for index, row in enumerate(rows) if index not in set(places)]
    if taken < count:
        kept = f"and holds {len(held)} of them out" if held else "and checks the result on the same row"
        log.warning("calibrates on %d rows instead of %d: the split has %d, %s", taken, count, len(rows), kept)
    used = [rows[index] for index in places]
    return used, spread(held, checks) or used


def calibration_ids(tokenizer: "PreTrainedTokenizerBase", rows: list[Row], max_tokens: int) -> list[list[int]]:
    """Token ids of each conversation with its answer, truncated to `max_tokens`.

    They are rendered by the chat template; for a base model, which has none, as plain text.  A warning tells if most are truncated: their
    answers, at the end, are then no part of the statistics.
    """
    from tasks.shared.model.prompts import render

    texts = [render(tokenizer, row.chat, add_generation_prompt=False, tools=row.tools) for row in rows]
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    long = sum(len(ids) > max_tokens for ids in whole)
    if 2 * long > len(rows):
        log.warning(
            "%d of %d calibration conversations lose their end, where the answer is, at max_tokens=%d; the longest has %d tokens",
            long, len(rows), max_tokens, max(map(len, whole)),
        )  # fmt: skip
    return [ids[:max_tokens] for ids in whole]


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
