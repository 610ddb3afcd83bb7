"""Perplexity per token of the gold answers, given the prompt: exp of the mean negative log-likelihood of the answers' tokens."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tasks.evaluate.completions import LlamaClient
from tasks.shared.errors import ModelError
from tasks.shared.progress import track
from tasks.shared.rows import Row

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORCE = 200.0
"""Logit bias that makes one token certain to be decoded; the reported log-probability is that of the unbiased logits."""


def token_losses(logits: "Tensor", ids: "Tensor", mask: "Tensor") -> "Tensor":
    """Negative log-likelihood of the tokens that `mask` marks, each given all before it.

    logits: (batch, length, vocabulary).  ids, mask: (batch, length).  Returns (marked tokens,), float32.
    """
    chosen = mask[:, 1:].bool()
    scores = logits[:, :-1][chosen].float().log_softmax(dim=-1)  # (marked, vocabulary)
    return -scores.gather(1, ids[:, 1:][chosen].unsqueeze(1)).squeeze(1)


def transformers_perplexity(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], batch_size: int
) -> float:
    """Over all answers together.  Raises ModelError if a logit is not a number."""
    import torch

    from tasks.shared.models import render

    pairs = []
    for row in rows:
        asked = tokenizer(render(tokenizer, row.prompt), add_special_tokens=False)["input_ids"]
        pairs.append((asked, tokenizer(row.answer, add_special_tokens=False)["input_ids"]))
    pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    total, count = 0.0, 0
    with torch.inference_mode():
        for ids, attention, answer in _batches(pairs, batch_size, tokenizer.pad_token_id):
            output = model(input_ids=ids.to(model.device), attention_mask=attention.to(model.device), use_cache=False)
            losses = token_losses(output.logits, ids.to(model.device), answer.to(model.device))
            total, count = total + float(losses.double().sum()), count + losses.numel()
    return _finish(total, count)


def _batches(
    pairs: list[tuple[list[int], list[int]]], batch_size: int, pad: int
) -> Iterator[tuple["Tensor", "Tensor", "Tensor"]]:
    """Ids, attention mask, answer mask: each (batch, length), padded on the right."""
    import torch

    for start in range(0, len(pairs), batch_size):
        chosen = pairs[start : start + batch_size]
        width = max(len(asked) + len(answer) for asked, answer in chosen)
        ids, attention, marks = [], [], []
        for asked, answer in chosen:
            rest = width - len(asked) - len(answer)
            ids.append(asked + answer + [pad] * rest)
            attention.append([1] * (width - rest) + [0] * rest)
            marks.append([0] * len(asked) + [1] * len(answer) + [0] * rest)
        yield torch.tensor(ids), torch.tensor(attention), torch.tensor(marks)


def llama_perplexity(client: LlamaClient, rows: Sequence[Row]) -> float:
    """The same through llama.cpp's server, which gives no log-probabilities of a prompt.

    So each answer token is forced in turn, after the cached prompt and the answer so far, and its own log-probability
    is read: one short request per token.  Raises ModelError if a value is missing or not a number.
    """

    def losses(row: Row) -> list[float]:
        ids = client.tokens(client.render(row.prompt))
        found = []
        for token in client.tokens(row.answer):
            choice = client.complete(ids, 1, logit_bias=[[token, FORCE]], logprobs=1)
            content = (choice.get("logprobs") or {}).get("content") or [{}]
            if content[0].get("id") != token:
                raise ModelError(
                    "perplexity in llama.cpp",
                    f"token {content[0].get('id')} instead of the forced {token}",
                    f"log-probability of token {token}",
                )
            found.append(-float(content[0]["logprob"]))
            ids = [*ids, token]
        return found

    everything = [loss for row in track(client.each(losses, rows), "perplexity", len(rows)) for loss in row]
    return _finish(sum(everything), len(everything))


def _finish(total: float, count: int) -> float:
    mean = total / count
    if not math.isfinite(mean):
        raise ModelError(
            "perplexity",
            f"mean loss {mean} over {count} tokens",
            "finite logits",
            "this model is broken: look at the step that made it",
        )
    return math.exp(min(mean, 700.0))
