"""Next-token divergence: KL and top-token agreement of two models, token by token.

Both models are loaded, so that the distributions cover the whole vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tasks.evaluate.likelihood.logits import BROKEN, error_name, load_for_scoring, next_logits, prompt_ids
from tasks.evaluate.models_under_test.isolated_runs import Resources
from tasks.evaluate.models_under_test.model_under_test import ModelUnderTest, Prompt
from tasks.shared.errors import ModelError
from tasks.shared.model.agreement import token_agreement
from tasks.shared.model.encoding import text_ids
from tasks.shared.model.generation import write_answers
from tasks.shared.model.loading import Dtype, load_tokenizer
from tasks.shared.model.prompts import render
from tasks.shared.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHUNK = 64
"""Positions compared at once: a handful of float32 tensors of 13 MB each for a vocabulary of 49,152."""
REMEDY = "leave it out of this step; bits per byte compares models across vocabularies"
GENERATION_BATCH = 16
"""Prompts that the baseline answers in one batch."""


@dataclass(frozen=True)
class AnswerPlan:
    """Prompts and answers for the baseline's pass.

    answers: gold answers; if empty, the baseline generates its own greedy ones of at most max_new_tokens.
    """

    prompts: Sequence[Prompt]
    answers: Sequence[str]
    max_new_tokens: int
    dtype: Dtype


@dataclass(frozen=True)
class ReferenceAnswers:
    """Answers on which all models are compared, with the number of positions in each."""

    answers: list[str]
    positions: list[int]


@dataclass(frozen=True)
class DivergencePlan:
    """Prompts and answers on which a model is compared with the baseline.

    baseline_id: cache identity of the baseline, whose path is not part of the cache key.
    """

    prompts: Sequence[Prompt]
    answers: Sequence[str]
    dtype: Dtype
    baseline_id: str
    baseline: Annotated[ModelUnderTest, Field(exclude=True)]


@dataclass(frozen=True)
class Divergences:
    """Divergence per conversation.

    kl: mean KL(baseline || model), nats per token.  same_top: share of positions with the same top token.
    """

    kl: list[float]
    same_top: list[float]
    notes: list[str] = field(default_factory=list)


def choose_answers(model: ModelUnderTest, plan: AnswerPlan, resources: Resources) -> ReferenceAnswers:
    """Return the gold answers, or generate the baseline's.

    A first forward pass checks that the baseline works at all.
    """
    where = error_name(model)
    loaded, tokenizer = load_for_scoring(model, plan.dtype, resources)
    before = [prompt_ids(tokenizer, prompt) for prompt in plan.prompts]
    next_logits(loaded, before[0], 1, where)
    answers = list(plan.answers)
    if not answers:
        rendered = [render(tokenizer, prompt.messages, tools=prompt.tools) for prompt in plan.prompts]
        written = write_answers(loaded, tokenizer, rendered, plan.max_new_tokens, GENERATION_BATCH)
        answers = [answer.text for answer in written]
    return ReferenceAnswers(answers, [len(text_ids(tokenizer, answer)) + 1 for answer in answers])


def measure_divergence(model: ModelUnderTest, plan: DivergencePlan, resources: Resources) -> Divergences:
    """Return a model's divergence from the baseline on every conversation.

    Each model reads the prompt in its own chat format.  Raises ModelError if the vocabularies or an answer's tokens differ, or if a
    divergence is not finite.
    """
    where, notes = error_name(model), []
    tokenizers = [load_tokenizer(one.weights) for one in (plan.baseline, model)]
    check_vocabulary(
        tokenizers[0].get_vocab(), tokenizers[1].get_vocab(), where
    )  # before the weights, which take longer
    before = [[prompt_ids(tokenizer, prompt) for prompt in plan.prompts] for tokenizer in tokenizers]
    answers = common_token_ids(tokenizers, plan.answers, where)
    if before[0] != before[1]:
        notes.append("uses a different chat format for the prompts")
    loaded = [load_for_scoring(one, plan.dtype, resources)[0] for one in (plan.baseline, model)]
    sizes = sorted({int(network.get_output_embeddings().weight.shape[0]) for network in loaded})
    if len(sizes) > 1:
        notes.append(
            f"compared over the {sizes[0]} of {sizes[1]} tokens that both models have logits for, renormalized"
        )
    kl, same = [], []
    for first, second, answer in track(zip(*before, answers, strict=True), model.name, len(answers)):
        divergence, top = mean_divergence(loaded, (first, second), answer, (error_name(plan.baseline), where))
        kl.append(divergence)
        same.append(top)
    return Divergences(kl, same, notes)


def mean_divergence(
    models: Sequence["PreTrainedModel"], prompts: Sequence[Sequence[int]], answer: Sequence[int], names: Sequence[str]
) -> tuple[float, float]:
    """Mean KL(first || second) in nats, and share of equal top tokens, over one answer.

    Positions: every answer token and the answer's end.  models, prompts, names: of the first and the second model.
    Returns (KL, share).  Raises ModelError that names the second model if the KL is not finite.
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
    """Raise ModelError unless the vocabularies agree.

    One may extend the other by tokens at unused ids.
    """
    shared = baseline.keys() & other.keys()
    moved = sum(baseline[token] != other[token] for token in shared)
    if moved or len(shared) < min(len(baseline), len(other)):
        raise ModelError(
            where, f"another vocabulary: {len(shared) - moved} tokens share their id, of {len(other)} here and {len(baseline)} in the baseline",
            "KL needs one vocabulary", REMEDY,
        )  # fmt: skip


def common_token_ids(
    tokenizers: Sequence["PreTrainedTokenizerBase"], answers: Sequence[str], where: str
) -> list[list[int]]:
    """Return the answers' token ids.  Raises ModelError if the two tokenizers differ on one."""
    found = []
    for answer in answers:
        first, second = (text_ids(tokenizer, answer) for tokenizer in tokenizers)
        if first != second:
            got = f"tokenizes {answer[:40]!r} differently from the baseline ({len(second)} tokens, not {len(first)})"
            raise ModelError(where, got, "KL needs the same tokens", REMEDY)
        found.append(first)
    return found
