"""Student answers sampled during training, reproducibly across a resume."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks.shared.model.head import core_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LogitsProcessor


def row_number(ids: Sequence[int]) -> int:
    """Return a 48-bit number that identifies a conversation by its content."""
    return int.from_bytes(hashlib.sha256(",".join(map(str, ids)).encode()).digest()[:6], "big")


def row_draws(seed: int, step: int, rows: Sequence[int], count: int) -> "Tensor":
    """Uniform random numbers for sampling each row's tokens: (rows, count), float64, in [0, 1).

    They depend on seed, step and row only, so batches, a resume and the trainer's generator do not change them.
    """
    import torch

    return torch.stack(
        [
            torch.rand(
                count,
                generator=torch.Generator().manual_seed(row_number((seed, step, row))),
                dtype=torch.float64,
            )
            for row in rows
        ]
    )


def draw_tokens(logits: "Tensor", draws: "Tensor", temperature: float) -> "Tensor":
    """Sample one token per row by inverting the cumulative distribution.

    logits: (rows, vocabulary).
    draws: (rows,), in [0, 1).
    Returns (rows,) token ids; tokens with probability zero are never drawn.
    """
    import torch

    cumulative = torch.softmax(logits.double() / temperature, dim=-1).cumsum(dim=-1)
    place = (draws.to(cumulative)[:, None] * cumulative[:, -1:]).contiguous()
    return torch.searchsorted(cumulative, place, right=True).clamp(max=logits.shape[-1] - 1)[:, 0]


def sample_answers(
    model: Any, prompts: Sequence[Sequence[int]], draws: "Tensor", temperature: float, end: int, pad: int
) -> list[list[int]]:
    """Sample an answer to each prompt, up to and including the end of turn.

    draws: (prompts, tokens), from `row_draws`; its width is the length limit.  end, pad: token ids.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    from tasks.distill.training.rounded_layers import rounded_once

    width = max(map(len, prompts))
    device = model.device
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    settings = GenerationConfig(
        max_new_tokens=draws.shape[1], do_sample=False, eos_token_id=end, pad_token_id=pad, use_cache=True
    )
    with torch.no_grad(), rounded_once(model), evaluating(model) as speaker:
        found = speaker.generate(
            input_ids=ids, attention_mask=mask, generation_config=settings,
            logits_processor=LogitsProcessorList([_drawing(draws.to(device), temperature, width)]),
        )  # fmt: skip
    return [_until(end, tokens) for tokens in found[:, width:].tolist()]


def _until(end: int, tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


@contextmanager
def evaluating(model: Any) -> Iterator[Any]:
    """Set evaluation mode, without the model's generation settings (repetition penalty, ...)."""
    from transformers import GenerationConfig

    core, training = core_of(model), model.training
    own, core.generation_config = core.generation_config, GenerationConfig()
    model.eval()
    try:
        yield core
    finally:
        core.generation_config = own
        model.train(training)


def _drawing(draws: "Tensor", temperature: float, width: int) -> "LogitsProcessor":
    """Return a processor that masks all tokens but the sampled one, which greedy decoding takes."""
    import torch
    from transformers import LogitsProcessor

    class Drawing(LogitsProcessor):
        def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
            chosen = draw_tokens(scores, draws[:, input_ids.shape[1] - width], temperature)
            only = torch.full_like(scores, -torch.inf)
            return only.scatter_(1, chosen[:, None], 0.0)  # type: ignore[return-value]

    return Drawing()
