"""The likelihood of documents of any length under one model, by a sliding window.

Source: Hugging Face, "Perplexity of fixed-length models" (transformers' documentation), with what lm-evaluation-harness's rolling
log-likelihood adds: a window's last token is not read for nothing, so that windows without overlap still score every token.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.evaluate.likelihood.logits import (
    BROKEN,
    called,
    next_logits,
    open_model,
    prompt_ids,
    text_ids,
    token_losses,
)
from tasks.evaluate.models_under_test.isolated_runs import Workspace
from tasks.evaluate.models_under_test.model_under_test import Messages, ModelUnderTest
from tasks.shared.errors import ModelError
from tasks.shared.model.loading import Dtype
from tasks.shared.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHUNK = 128
"""Positions whose logits are turned to float32 together: of 49,152 tokens 25 MB."""

CUT = "\ufffd"
"""What stands for bytes that are no whole character."""


@dataclass(frozen=True)
class Plan:
    """What to score: texts, and the conversation before each (empty: none).  context, stride: tokens (see `windows`)."""

    texts: Sequence[str]
    prompts: Sequence[Messages]
    context: int
    stride: int
    dtype: Dtype


@dataclass(frozen=True)
class Loss:
    """One document.  nats: of its scored tokens together.  skipped: bytes of a first token that nothing stood before."""

    nats: float
    tokens: int
    skipped: int


@dataclass(frozen=True)
class Reading:
    """One model's losses, in the plan's order.

    opening: what was put before every window, where texts stood alone; empty: nothing.  cut: prompts that did not fit in a window whole.
    tokens_digest: of all documents' tokens; the same for two models that split the texts alike.
    """

    losses: list[Loss]
    opening: str
    cut: int
    tokens_digest: str


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `end` - 1 are read, and tokens `scored` to `end` predicted (ends excluded)."""

    start: int
    scored: int
    end: int


def windows(length: int, first: int, context: int, stride: int) -> Iterator[Window]:
    """Windows that together predict each of the tokens `first` to `length` once.

    context: tokens that one pass reads.  The first window predicts all that it can reach; each of the others `stride` new
    tokens, so that at least context - stride tokens stand before every one of them, as far as there are any.
    """
    position = first
    while position < length:
        reach = max(context + 1, position + stride)
        yield Window(reach - 1 - context, position, min(length, reach))
        position = reach


def opening_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """What the tokenizer puts before a text by its own convention: the beginning-of-sequence token, or nothing."""
    bare, full = text_ids(tokenizer, "a"), list(tokenizer("a")["input_ids"])
    starts = [start for start in range(len(full)) if full[start : start + len(bare)] == bare]
    return full[: starts[0]] if starts else []


def document_nats(
    model: "PreTrainedModel", opening: Sequence[int], ids: Sequence[int], spans: Sequence[Window], where: str
) -> float:
    """Negative log-likelihood of the tokens that the windows predict, in nats.  opening: read before every window.

    Raises ModelError if it is not a finite number.
    """
    import torch

    total = 0.0
    for span in spans:
        read = [*opening, *ids[span.start : span.end - 1]]
        logits = next_logits(model, read, span.end - span.scored, where)
        targets = torch.tensor(ids[span.scored : span.end], device=logits.device)
        for rows, chosen in zip(logits.split(CHUNK), targets.split(CHUNK), strict=True):
            total += float(token_losses(rows, chosen).double().sum())
    if not math.isfinite(total):
        raise ModelError(where, f"a loss of {total} nats", "finite logits", BROKEN)
    return total


def first_bytes(decoded: str, text: str) -> int:
    """Bytes of a text that its first token stands for, fewer than the text has if others follow.  decoded: that token as text.

    A token may end within a character; what it has of that one, shown as U+FFFD, counts as one byte.
    """
    partial = decoded.endswith(CUT) and not text.startswith(decoded)
    size = len(decoded.rstrip(CUT).encode()) + 1 if partial else len(decoded.encode())
    return min(size, max(0, len(text.encode()) - 1))


def score_documents(subject: ModelUnderTest, plan: Plan, workspace: Workspace) -> Reading:
    """Load the model and score every document by itself.

    A document without a prompt begins with the tokenizer's own opening, if it has one, and so does every window of it (models
    that were trained with one need it).  Without one, the first token has nothing before it and is not scored.
    """
    where = called(subject)
    model, tokenizer = open_model(subject, plan.dtype, workspace, chat=any(plan.prompts))
    opening, digest, losses, cut = opening_ids(tokenizer), hashlib.sha256(), [], 0
    for text, prompt in track(zip(plan.texts, plan.prompts, strict=True), subject.name, len(plan.texts)):
        before = prompt_ids(tokenizer, prompt) if prompt else []
        ids = text_ids(tokenizer, text)
        digest.update(f"{ids}\n".encode())
        head = [] if prompt else opening
        first = len(before) if prompt or head else 1
        spans = list(windows(len(before) + len(ids), first, plan.context - len(head), plan.stride))
        nats = document_nats(model, head, [*before, *ids], spans, where)
        skipped = 0 if prompt or head else first_bytes(str(tokenizer.decode(ids[:1])), text)
        losses.append(Loss(nats, max(0, len(before) + len(ids) - first), skipped))
        cut += bool(prompt) and bool(spans) and spans[0].start > 0
    return Reading(losses, "" if all(plan.prompts) else str(tokenizer.decode(opening)), cut, digest.hexdigest())
