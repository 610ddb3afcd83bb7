"""Predict labels and generate answers with one model, loaded once in its own process."""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.evaluate.grading.answers import Reply
from tasks.evaluate.models_under_test.isolated_runs import Resources
from tasks.evaluate.models_under_test.label_choice import harness_choices, llama_choices
from tasks.evaluate.models_under_test.model_under_test import Messages, ModelUnderTest, RowPrompts
from tasks.shared.engines.llama_client import LlamaClient
from tasks.shared.errors import ModelError
from tasks.shared.model.generation import Written, check_logits, write_answers
from tasks.shared.model.loading import has_cpu_bfloat16, load_model, load_tokenizer
from tasks.shared.model.prompts import render
from tasks.shared.model.weights import is_gguf, read_gguf
from tasks.shared.progress import track
from tasks.shared.text.reasoning import reasoning_prefix

log = logging.getLogger(__name__)
PARALLEL = 1
"""Requests that llama.cpp decodes together.  Batched requests share rounding, so with more than one the answers would depend on
the order of arrival."""

SPECIAL_TOKENS = 2
"""Tokens that a tokenizer may add before a prompt: beginning of sequence, and a space."""


@dataclass(frozen=True)
class GenerationPlan:
    """Prompts and settings of one model's generation run.

    labels: intents to choose from; empty skips the label choice.  labeled: answers start with a label line.
    max_new_tokens: length limit of an answer; 0 skips generation.
    batch_size: prompts generated together in transformers.  context: tokens of prompt and answer in llama.cpp.
    reversed_order: send prompts to llama.cpp in reverse, so that its prefix cache holds other prefixes.
    """

    prompts: Sequence[RowPrompts]
    labels: Sequence[str]
    labeled: bool
    max_new_tokens: int
    batch_size: int
    context: int
    reversed_order: bool = False


@dataclass(frozen=True)
class Predictions:
    """One model's replies, one per row, in the plan's order."""

    replies: list[Reply]


def generate_replies(model: ModelUnderTest, plan: GenerationPlan, resources: Resources) -> Predictions:
    """Run one model over a plan, with labels and answers as the plan asks for.

    Raises ModelError if the model cannot be loaded or run, or its logits are not finite.
    """
    generate = _generate_in_llama if model.engine == "llama.cpp" else _generate_in_transformers
    choices, written = generate(model, plan, resources)
    replies = zip(choices or [""] * len(written), written, strict=True)
    return Predictions([Reply(choice, found.text, found.ended, plan.labeled) for choice, found in replies])


def choose_dtype(device: str) -> Literal["float32", "bfloat16"]:
    """Return bfloat16 on accelerators and CPUs with bfloat16 instructions; else float32."""
    return "bfloat16" if device != "cpu" or has_cpu_bfloat16() else "float32"


def template_notes(models: Sequence[ModelUnderTest]) -> list[str]:
    """Return a note for each model without a chat template, which is prompted in ChatML instead.

    Loading refuses a folder without a template whose vocabulary lacks ChatML's markup; llama.cpp refuses none.
    """
    untemplated = [model.name for model in models if not model.failure and not has_template(model.weights)]
    return [f"{name} has no chat template and is prompted in ChatML." for name in dict.fromkeys(untemplated)]


def has_template(weights: Path) -> bool:
    """Return True if a model folder or GGUF file has a chat template, or cannot be read."""
    if is_gguf(weights):
        return read_gguf(weights).get_field("tokenizer.chat_template") is not None
    config = weights / "tokenizer_config.json"
    if (weights / "chat_template.jinja").is_file() or not config.is_file():
        return True
    with contextlib.suppress(ValueError, AttributeError):  # not JSON, or not an object: loading it reports the error
        return bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
    return True


def _generate_in_transformers(
    model: ModelUnderTest, plan: GenerationPlan, resources: Resources
) -> tuple[list[str], list[Written]]:
    import torch

    torch.set_num_threads(resources.threads)
    loaded = load_model(model.weights, choose_dtype(resources.device), resources.device)
    tokenizer = load_tokenizer(model.weights)
    prompts = [render(tokenizer, question.answer_messages) for question in plan.prompts]
    check_logits(loaded, tokenizer, prompts[0])
    written = [Written("", True)] * len(prompts)
    if plan.max_new_tokens:
        written = write_answers(loaded, tokenizer, prompts, plan.max_new_tokens, plan.batch_size)
    if not plan.labels:
        return [], written
    contexts = choice_contexts(lambda messages: render(tokenizer, messages), plan, written)
    scoring = max(1, plan.batch_size // 4)  # a batch's logits are batch x length x vocabulary
    return harness_choices(loaded, tokenizer, contexts, plan.labels, resources.scratch / "harness", scoring), written


def _generate_in_llama(
    model: ModelUnderTest, plan: GenerationPlan, resources: Resources
) -> tuple[list[str], list[Written]]:
    from tasks.shared.engines.llama_server import serve

    with serve(model.weights, threads=resources.threads, parallel=PARALLEL, context=plan.context) as url:
        client = LlamaClient(url, PARALLEL)
        prompts = [client.render(question.answer_messages) for question in plan.prompts]
        check_llama_logits(client, prompts[0])
        check_context(client, prompts, plan.max_new_tokens, plan.context)
        written = (
            _in_article_order(client, prompts, plan) if plan.max_new_tokens else [Written("", True)] * len(prompts)
        )
        contexts = choice_contexts(client.render, plan, written) if plan.labels else []
        check_context(client, contexts, 1, plan.context)
        return llama_choices(client, contexts, plan.labels) if plan.labels else [], written


def choice_contexts(write: Callable[[Messages], str], plan: GenerationPlan, written: Sequence[Written]) -> list[str]:
    """Return the texts after which labels are scored: prompt, plus the model's own reasoning.

    A model trained to reason first has never seen a label right after the prompt.  No reasoning is added where label and answer have
    different prompts (a reference), or where no answer is generated.
    """
    return [
        write(question.label_messages)
        + (reasoning_prefix(found.text) if question.label_messages == question.answer_messages else "")
        for question, found in zip(plan.prompts, written, strict=True)
    ]


def check_llama_logits(client: LlamaClient, prompt: str) -> None:
    """Raise ModelError unless llama.cpp returns a finite log-probability after the prompt.

    Its server reports log-probabilities of decoded tokens only, so one token is decoded.
    """
    found = (client.complete(prompt, 1, logprobs=1).get("logprobs") or {}).get("content") or [{}]
    value = found[0].get("logprob")
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ModelError(
            "log-probability of a token in llama.cpp",
            f"{value}",
            "a number",
            "the model is broken: check the step that made it",
        )


def check_context(client: LlamaClient, prompts: Sequence[str], new: int, context: int) -> None:
    """Raise ModelError if a prompt plus `new` tokens exceeds the context.

    llama.cpp would truncate the answer and still report it as complete.
    """
    likely = [
        prompt for prompt in prompts if len(prompt.encode()) + SPECIAL_TOKENS + new > context
    ]  # a token is at least one byte
    needed = max((len(client.tokens(prompt)) for prompt in likely), default=0) + SPECIAL_TOKENS + new
    if likely and needed > context:
        got = f"{context} tokens, but the longest prompt with its answer needs {needed}"
        raise ModelError("context", got, f"at least {needed}", f"context: {needed}")


def _in_article_order(client: LlamaClient, prompts: Sequence[str], plan: GenerationPlan) -> list[Written]:
    """Greedy answers, sorted so that prompts about one article share the server's prefix cache."""
    order = sorted(range(len(prompts)), key=lambda index: prompts[index], reverse=plan.reversed_order)

    def answer(index: int) -> Written:
        found = client.complete(prompts[index], plan.max_new_tokens)
        return Written(str(found["text"]).strip(), found.get("finish_reason") == "stop")

    found: dict[int, Written] = {}
    for index, written in zip(order, track(client.each(answer, order), "answers", len(order)), strict=True):
        found[index] = written
    return [found[index] for index in range(len(prompts))]
