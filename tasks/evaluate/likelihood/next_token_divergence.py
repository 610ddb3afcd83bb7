"""How closely one model follows another, position by position, on the same text: both are loaded, so the distributions are whole."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tasks.evaluate.likelihood.logits import BROKEN, called, next_logits, open_model, prompt_ids, text_ids
from tasks.evaluate.models_under_test.isolated_runs import Workspace
from tasks.evaluate.models_under_test.model_under_test import Messages, ModelUnderTest
from tasks.shared.errors import ModelError
from tasks.shared.model.agreement import token_agreement
from tasks.shared.model.generation import write_answers
from tasks.shared.model.loading import Dtype, load_tokenizer, render
from tasks.shared.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHUNK = 64
"""Positions that are compared together: of 49,152 tokens 13 MB a tensor in float32, and a handful of them."""
ELSEWHERE = "leave it out of this step; bits per byte compares models of any vocabulary"
TOGETHER = 16
"""Prompts that the baseline answers together."""


@dataclass(frozen=True)
class TextPlan:
    """What the baseline is asked first.  answers: gold ones; empty: its own greedy ones are taken, of at most max_new_tokens."""

    prompts: Sequence[Messages]
    answers: Sequence[str]
    max_new_tokens: int
    dtype: Dtype


@dataclass(frozen=True)
class Texts:
    """The answers on which all models are compared, and at how many positions of each."""

    answers: list[str]
    positions: list[int]


@dataclass(frozen=True)
class FollowPlan:
    """What a candidate is compared on.  content: of the baseline; its folder is not part of the question, so it is not filed by it."""

    prompts: Sequence[Messages]
    answers: Sequence[str]
    dtype: Dtype
    content: str
    baseline: Annotated[ModelUnderTest, Field(exclude=True)]


@dataclass(frozen=True)
class Distances:
    """By conversation: mean KL(baseline || model) in nats, and the share of positions with the same top token."""

    kl: list[float]
    same_top: list[float]
    notes: list[str] = field(default_factory=list)


def choose_texts(subject: ModelUnderTest, plan: TextPlan, workspace: Workspace) -> Texts:
    """Ask the baseline for its answers, or take the gold ones; a first pass tells whether it works at all."""
    where = called(subject)
    model, tokenizer = open_model(subject, plan.dtype, workspace)
    before = [prompt_ids(tokenizer, prompt) for prompt in plan.prompts]
    next_logits(model, before[0], 1, where)
    answers = list(plan.answers)
    if not answers:
        rendered = [render(tokenizer, prompt) for prompt in plan.prompts]
        written = write_answers(model, tokenizer, rendered, plan.max_new_tokens, TOGETHER)
        answers = [answer.text for answer in written]
    return Texts(answers, [len(text_ids(tokenizer, answer)) + 1 for answer in answers])


def follow(subject: ModelUnderTest, plan: FollowPlan, workspace: Workspace) -> Distances:
    """Load baseline and model, and compare them on every conversation: at each token of the answer, and at its end.

    Each reads the prompt in its own chat format.  Raises ModelError if their vocabularies or their tokens of an answer differ,
    or if a distance is not a finite number.
    """
    where, notes = called(subject), []
    tokenizers = [load_tokenizer(one.weights) for one in (plan.baseline, subject)]
    check_vocabulary(
        tokenizers[0].get_vocab(), tokenizers[1].get_vocab(), where
    )  # before the weights, which take longer
    before = [[prompt_ids(tokenizer, prompt) for prompt in plan.prompts] for tokenizer in tokenizers]
    answers = same_tokens(tokenizers, plan.answers, where)
    if before[0] != before[1]:
        notes.append("reads the prompts in a chat format of its own")
    models = [open_model(one, plan.dtype, workspace)[0] for one in (plan.baseline, subject)]
    sizes = sorted({int(model.get_output_embeddings().weight.shape[0]) for model in models})
    if len(sizes) > 1:
        notes.append(
            f"compared over {sizes[0]} of {sizes[1]} tokens, those that both have logits for, with their probabilities scaled to 1"
        )
    kl, same = [], []
    for first, second, answer in track(zip(*before, answers, strict=True), subject.name, len(answers)):
        divergence, top = distances(models, (first, second), answer, (called(plan.baseline), where))
        kl.append(divergence)
        same.append(top)
    return Distances(kl, same, notes)


def distances(
    models: Sequence["PreTrainedModel"], prompts: Sequence[Sequence[int]], answer: Sequence[int], names: Sequence[str]
) -> tuple[float, float]:
    """Mean KL(first || second) in nats and share of the same top token, over an answer's tokens and what follows it.

    models, prompts, names: of the first and the second.  Raises ModelError naming the second if the KL is not finite.
    """
    count = len(answer) + 1
    first, second = (
        next_logits(model, [*prompt, *answer], count, name)
        for model, prompt, name in zip(models, prompts, names, strict=True)
    )
    common = min(first.shape[-1], second.shape[-1])
    total, same = 0.0, 0
    for ours, theirs in zip(first[:, :common].split(CHUNK), second[:, :common].split(CHUNK), strict=True):
        divergence, top = token_agreement(ours, theirs)
        total, same = total + float(divergence.double().sum()), same + int(top.sum())
    if not math.isfinite(total):
        raise ModelError(names[1], f"a KL of {total}", "finite logits in it and the baseline", BROKEN)
    return total / count, same / count


def check_vocabulary(baseline: Mapping[str, int], other: Mapping[str, int], where: str) -> None:
    """Raise ModelError unless one vocabulary is the other, or the other with tokens added at free ids."""
    shared = baseline.keys() & other.keys()
    moved = sum(baseline[token] != other[token] for token in shared)
    if moved or len(shared) < min(len(baseline), len(other)):
        raise ModelError(
            where, f"another vocabulary: {len(shared) - moved} tokens with the same id, of {len(other)} here and {len(baseline)} in the baseline",
            "KL needs one vocabulary", ELSEWHERE,
        )  # fmt: skip


def same_tokens(tokenizers: Sequence["PreTrainedTokenizerBase"], answers: Sequence[str], where: str) -> list[list[int]]:
    """The answers' tokens.  Raises ModelError if the two tokenizers differ on one."""
    found = []
    for answer in answers:
        first, second = (text_ids(tokenizer, answer) for tokenizer in tokenizers)
        if first != second:
            got = f"splits {answer[:40]!r} into other tokens than the baseline ({len(second)}, not {len(first)})"
            raise ModelError(where, got, "KL needs the same tokens", ELSEWHERE)
        found.append(first)
    return found
