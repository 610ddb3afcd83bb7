"""Likelihood of documents of any length under one model, by a sliding window.

Source: Hugging Face, "Perplexity of fixed-length models" (transformers documentation), plus the rolling log-likelihood of
lm-evaluation-harness: a window's last token is only predicted, not read, so that windows without overlap still score every token.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.evaluate.likelihood.logits import (
    BROKEN,
    error_name,
    load_for_scoring,
    next_logits,
    prompt_ids,
    token_losses,
)
from tasks.evaluate.models_under_test.isolated_runs import Resources
from tasks.evaluate.models_under_test.model_under_test import ModelUnderTest, Prompt
from tasks.shared.errors import ModelError
from tasks.shared.model.encoding import text_ids
from tasks.shared.model.loading import Dtype
from tasks.shared.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHUNK = 128
"""Positions converted to float32 at once: 25 MB of logits for a vocabulary of 49,152."""

REPLACEMENT = "\ufffd"
"""Replacement character that decoders emit for an incomplete character."""


@dataclass(frozen=True)
class PerplexityPlan:
    """Documents to score.

    texts: scored documents.  prompts: the conversation before each, without messages for none.  context, stride: tokens (see `windows`).
    """

    texts: Sequence[str]
    prompts: Sequence[Prompt]
    context: int
    stride: int
    dtype: Dtype


@dataclass(frozen=True)
class DocumentLoss:
    """Loss of one document.

    nats: total over its scored tokens.  skipped: bytes of a first token that has no context and is not scored.
    """

    nats: float
    tokens: int
    skipped: int


@dataclass(frozen=True)
class PerplexityResult:
    """One model's losses, in the plan's order.

    bos: text of the tokens before every window of a document without prompt; empty for none.  truncated: prompts longer than a window.
    tokens_digest: of all documents' tokens; equal for two models that tokenize the texts alike.
    """

    losses: list[DocumentLoss]
    bos: str
    truncated: int
    tokens_digest: str


@dataclass(frozen=True)
class Window:
    """Window that reads tokens start..end - 1 and predicts tokens scored..end, ends excluded."""

    start: int
    scored: int
    end: int


def windows(length: int, first: int, context: int, stride: int) -> Iterator[Window]:
    """Yield windows that together predict each of the tokens first..length exactly once.

    context: tokens read in one pass.  The first window predicts all that it can reach; each other window predicts `stride` new tokens,
    each with at least context - stride tokens before it, as far as there are any.
    """
    position = first
    while position < length:
        reach = max(context + 1, position + stride)
        yield Window(reach - 1 - context, position, min(length, reach))
        position = reach


def bos_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the token ids that a tokenizer puts before a text, such as beginning of sequence."""
    bare, full = text_ids(tokenizer, "a"), list(tokenizer("a")["input_ids"])
    starts = [start for start in range(len(full)) if full[start : start + len(bare)] == bare]
    return full[: starts[0]] if starts else []


def document_nats(
    model: "PreTrainedModel", bos: Sequence[int], ids: Sequence[int], spans: Sequence[Window], where: str
) -> float:
    """Negative log-likelihood of the tokens predicted by the windows, in nats.

    bos: token ids read before every window.  Raises ModelError if the result is not finite.
    """
    import torch

    total = 0.0
    for span in spans:
        read = [*bos, *ids[span.start : span.end - 1]]
        logits = next_logits(model, read, span.end - span.scored, where)
        targets = torch.tensor(ids[span.scored : span.end], device=logits.device)
        for rows, chosen in zip(logits.split(CHUNK), targets.split(CHUNK), strict=True):
            total += float(token_losses(rows, chosen).double().sum())
    if not math.isfinite(total):
        raise ModelError(where, f"a loss of {total} nats", "finite logits", BROKEN)
    return total


def first_bytes(decoded: str, text: str) -> int:
    """Return the number of bytes of `text` that its first token covers.

    At most all but one byte, since other tokens follow.  decoded: that token as text.  A token may end within a character; its part of
    that character, shown as U+FFFD, counts as one byte.
    """
    partial = decoded.endswith(REPLACEMENT) and not text.startswith(decoded)
    size = len(decoded.rstrip(REPLACEMENT).encode()) + 1 if partial else len(decoded.encode())
    return min(size, max(0, len(text.encode()) - 1))


def score_documents(model: ModelUnderTest, plan: PerplexityPlan, resources: Resources) -> PerplexityResult:
    """Load the model and score every document on its own.

    A document without a prompt starts with the tokenizer's own beginning-of-sequence tokens, if any, and so does each of its windows
    (models trained with them need them).  Without them, its first token has no context and is not scored.
    """
    where, chats = error_name(model), [bool(prompt.messages) for prompt in plan.prompts]
    loaded, tokenizer = load_for_scoring(model, plan.dtype, resources, chat=any(chats))
    bos, digest, losses, truncated = bos_ids(tokenizer), hashlib.sha256(), [], 0
    documents = zip(plan.texts, plan.prompts, chats, strict=True)
    for text, prompt, chat in track(documents, model.name, len(plan.texts)):
        before = prompt_ids(tokenizer, prompt) if chat else []
        ids = text_ids(tokenizer, text)
        digest.update(f"{ids}\n".encode())
        head = [] if chat else bos
        first = len(before) if chat or head else 1
        spans = list(windows(len(before) + len(ids), first, plan.context - len(head), plan.stride))
        nats = document_nats(loaded, head, [*before, *ids], spans, where)
        skipped = 0 if chat or head else first_bytes(str(tokenizer.decode(ids[:1])), text)
        losses.append(DocumentLoss(nats, max(0, len(before) + len(ids) - first), skipped))
        truncated += chat and bool(spans) and spans[0].start > 0
    return PerplexityResult(losses, "" if all(chats) else str(tokenizer.decode(bos)), truncated, digest.hexdigest())
