"""Conversion of conversations to token ids, labels and batches."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tasks.shared.errors import DataError
from tasks.shared.formats.rows import Row
from tasks.shared.model.turns import Piece, learned_pieces

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

TooLong = Literal["stop", "drop"]
log = logging.getLogger(__name__)
Encoded = dict[str, Any]
"""A conversation: `input_ids`, `labels` (IGNORED except in learned turns), and numbers or lists of numbers by which an objective
finds its own targets."""


class LongRowsError(DataError):
    """Conversations are longer than the limit.

    rows: ids of all of them.
    """

    def __init__(self, lengths: Mapping[str, int], most: int) -> None:
        self.rows = frozenset(lengths)
        shown = ", ".join(f"{name} ({length})" for name, length in list(lengths.items())[:5])
        super().__init__(
            "traces/train.jsonl",
            f"{len(lengths)} conversations are too long: {shown}",
            f"at most {most} tokens",
            f"raise max_tokens (the longest has {max(lengths.values())}), or leave them out with too_long=drop",
        )


def encode(rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", max_tokens: int) -> list[Encoded]:
    """Token ids and labels of each conversation; labels are IGNORED except in learned turns.

    rows: as `turns.examples` returns them; in a row without marks, all of the assistant's turns are learned.
    A learned turn is labeled from the end of its prompt to the token that ends it.
    Raises DataError that lists rows without an answer, LongRowsError for rows longer than `max_tokens`.
    """
    encoded = []
    silent: list[str] = []
    long: dict[str, int] = {}
    for row in rows:
        pieces = learned_pieces(tokenizer, row)
        if not pieces:
            silent.append(row.id)
            continue
        ids, learned = token_pieces(tokenizer, pieces)
        if len(ids) > max_tokens:
            long[row.id] = len(ids)
        labels = [token if mine else IGNORED for token, mine in zip(ids, learned, strict=True)]
        encoded.append({"input_ids": ids, "labels": labels})
    if silent:
        raise DataError(
            "traces/train.jsonl",
            f"{len(silent)} conversations have no answer: {', '.join(silent[:5])}",
            "an assistant's turn to learn that is not empty and follows a question",
            "remove these rows, or generate answers (a traces step)",
        )
    if long:
        raise LongRowsError(long, max_tokens)
    return encoded


def encode_fitting(
    encoder: Callable[[Sequence[Row]], list[Encoded]], rows: Sequence[Row], too_long: TooLong
) -> tuple[list[Row], list[Encoded]]:
    """Return the rows that fit and their encodings; log how many were left out.

    encoder: raises LongRowsError for rows that do not fit.  too_long: "stop" lets the error pass.
    Raises LongRowsError if most rows do not fit.
    """
    try:
        return list(rows), encoder(rows)
    except LongRowsError as error:
        fitting = [row for row in rows if row.id not in error.rows]
        if too_long == "stop" or 2 * len(fitting) < len(rows):
            raise
    log.warning("%d of %d conversations are longer than max_tokens and left out", len(rows) - len(fitting), len(rows))
    return fitting, encoder(fitting)


def token_pieces(tokenizer: "PreTrainedTokenizerBase", pieces: Sequence[Piece]) -> tuple[list[int], list[bool]]:
    """Token ids of a text given in pieces, and for each, True if its piece is learned.

    The ids of a prompt are those that generation reads.  A token that would reach over the end of a piece is avoided by splitting
    the next piece by itself.
    """
    ids: list[int] = []
    learned: list[bool] = []
    text = ""
    for piece in pieces:
        text += piece.text
        whole = text_ids(tokenizer, text)
        new = whole[len(ids) :] if whole[: len(ids)] == ids else _following(tokenizer, piece.text)
        ids, learned = [*ids, *new], [*learned, *[piece.learned] * len(new)]
    return ids, learned


def _following(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of a text that follows another.

    Some tokenizers (Llama 2's) put a space before a text, but not before one that follows a special token.
    """
    end = str(tokenizer.eos_token or "")
    mark = text_ids(tokenizer, end) if end else []
    found = text_ids(tokenizer, end + text) if len(mark) == 1 else []
    return found[1:] if found[:1] == mark and mark else text_ids(tokenizer, text)


def text_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Return the token ids of the text alone; markup becomes special tokens, none is added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


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
