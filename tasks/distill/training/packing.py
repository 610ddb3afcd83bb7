"""Packing: several conversations in one row that do not attend to each other.

TRL arranges the packs (best-fit decreasing; Ding et al. 2024, arXiv 2404.10830).  Positions restart at 0 in each conversation,
from which transformers builds a block-diagonal attention mask.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import TechniqueError
from tasks.shared.model.encoding import IGNORED, Encoded

if TYPE_CHECKING:
    from torch import Tensor

LEAK = 1e-3
"""Largest relative difference of the states that rounding explains; attention to another conversation changes them by about 1."""


def pack(rows: Sequence[Encoded], max_tokens: int) -> list[Encoded]:
    """Concatenate rows into packs with `position_ids`.

    rows: every column is a list with one entry per token.
    The first token of a conversation is not a target, since the token before it belongs to another conversation.
    """
    if not rows:
        return []
    from datasets import Dataset
    from trl import pack_dataset

    alone = [{**row, "labels": [IGNORED, *row["labels"][1:]]} for row in rows]
    with _quiet():
        packed = pack_dataset(Dataset.from_list(alone), max_tokens, strategy="bfd")
    return [
        {name: found[name] for name in rows[0]}
        | {"position_ids": [place for length in found["seq_lengths"] for place in range(length)]}
        for found in packed
    ]


def check_packs(model: Any, packs: Sequence[Encoded]) -> None:
    """Raise TechniqueError if the model mixes conversations within a pack.

    Recurrent layers and custom attention may ignore positions.
    """
    import torch

    found = next((pack for pack in packs if pack["position_ids"].count(0) > 1), None)
    if found is None:
        return
    starts = [place for place, position in enumerate(found["position_ids"]) if position == 0]
    first, second, end = [*starts, len(found["input_ids"])][:3]

    def states(begin: int) -> "Tensor":
        ids, places = (
            torch.tensor([found[name][begin:end]], device=model.device) for name in ("input_ids", "position_ids")
        )
        return model.base_model(input_ids=ids, position_ids=places, use_cache=False).last_hidden_state[
            :, second - begin :
        ]

    was_training = model.training
    model.eval()
    with torch.no_grad():
        together, alone = states(first), states(second)
    model.train(was_training)
    leak = float((together - alone).abs().max() / alone.abs().max())
    if not leak < LEAK:
        got = f"in this model, the conversations of a pack see each other (states differ by {leak:.1e} of their size)"
        raise TechniqueError("packing", got, "attention that respects positions", "packing: false")


@contextmanager
def _quiet() -> Iterator[None]:
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silent = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not silent:
            enable_progress_bars()
