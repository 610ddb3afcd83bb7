"""Ask one model for labels and answers: loaded once, in the process of its own that `ask_each` gives it."""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.evaluate.grading.answers import Reply
from tasks.evaluate.models_under_test.isolated_runs import Workspace
from tasks.evaluate.models_under_test.label_choice import harness_choices, llama_choices
from tasks.evaluate.models_under_test.model_under_test import Messages, ModelUnderTest, Question
from tasks.shared.engines.llama_client import LlamaClient
from tasks.shared.errors import ModelError
from tasks.shared.model.generation import Written, check_logits, write_answers
from tasks.shared.model.loading import has_cpu_bfloat16, load_model, load_tokenizer, render
from tasks.shared.model.weights import is_gguf, read_gguf
from tasks.shared.progress import track
from tasks.shared.text.reasoning import reasoning_prefix

log = logging.getLogger(__name__)
PARALLEL = 1
"""Requests that llama.cpp decodes together: what shares a batch shares its rounding, so with more the answers would depend on
which request came in first."""

EXTRA = 2
"""Tokens that a vocabulary may put before a prompt: the beginning of a sequence, and a space."""


@dataclass(frozen=True)
class Plan:
    """What to ask.

    labels: the intents to choose from; none skips the choice.  labeled: answers start with a label line.
    max_new_tokens: length limit of an answer; 0 skips the answers.
    batch_size: prompts generated together in transformers.  context: tokens of prompt and answer in llama.cpp.
    backwards: llama.cpp gets the prompts in reverse order, so that other prefixes are in its cache.
    """

    questions: Sequence[Question]
    labels: Sequence[str]
    labeled: bool
    max_new_tokens: int
    batch_size: int
    context: int
    backwards: bool = False


@dataclass(frozen=True)
class Reading:
    """What one model gave: a reply per question, in order."""

    replies: list[Reply]


def ask(subject: ModelUnderTest, plan: Plan, workspace: Workspace) -> Reading:
    """All of a plan.  Raises ModelError if the model cannot be loaded or run, or its logits are not numbers."""
    asked = _ask_llama if subject.engine == "llama.cpp" else _ask_transformers
    choices, words = asked(subject, plan, workspace)
    replies = zip(choices or [""] * len(words), words, strict=True)
    return Reading([Reply(choice, found.text, found.ended, plan.labeled) for choice, found in replies])


def choose_dtype(device: str) -> Literal["float32", "bfloat16"]:
    """bfloat16 where it is fast: accelerators, and processors with bfloat16 instructions; else float32."""
    return "bfloat16" if device != "cpu" or has_cpu_bfloat16() else "float32"


def template_notes(subjects: Sequence[ModelUnderTest]) -> list[str]:
    """Which models bring no chat template and are asked in ChatML instead.

    A folder without one whose vocabulary lacks ChatML's markup too is refused when it is loaded; llama.cpp refuses none.
    """
    bare = [subject.name for subject in subjects if not subject.broken and not has_template(subject.weights)]
    return [f"{name} brings no chat template and is asked in ChatML." for name in dict.fromkeys(bare)]


def has_template(weights: Path) -> bool:
    """Whether a model folder or GGUF file says how a conversation is written for it; True where that cannot be read."""
    if is_gguf(weights):
        return read_gguf(weights).get_field("tokenizer.chat_template") is not None
    config = weights / "tokenizer_config.json"
    if (weights / "chat_template.jinja").is_file() or not config.is_file():
        return True
    with contextlib.suppress(ValueError, AttributeError):  # not JSON, or no object: loading it says so
        return bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
    return True


def _ask_transformers(subject: ModelUnderTest, plan: Plan, workspace: Workspace) -> tuple[list[str], list[Written]]:
    import torch

    torch.set_num_threads(workspace.threads)
    model = load_model(subject.weights, choose_dtype(workspace.device), workspace.device)
    tokenizer = load_tokenizer(subject.weights)
    prompts = [render(tokenizer, question.answer) for question in plan.questions]
    check_logits(model, tokenizer, prompts[0])
    words = [Written("", True)] * len(prompts)
    if plan.max_new_tokens:
        words = write_answers(model, tokenizer, prompts, plan.max_new_tokens, plan.batch_size)
    if not plan.labels:
        return [], words
    contexts = choice_contexts(lambda messages: render(tokenizer, messages), plan, words)
    scoring = max(1, plan.batch_size // 4)  # a batch's logits are batch x length x vocabulary
    return harness_choices(model, tokenizer, contexts, plan.labels, workspace.scratch / "harness", scoring), words


def _ask_llama(subject: ModelUnderTest, plan: Plan, workspace: Workspace) -> tuple[list[str], list[Written]]:
    from tasks.shared.engines.llama_server import serve

    with serve(subject.weights, threads=workspace.threads, parallel=PARALLEL, context=plan.context) as url:
        client = LlamaClient(url, PARALLEL)
        prompts = [client.render(question.answer) for question in plan.questions]
        check_llama_logits(client, prompts[0])
        check_context(client, prompts, plan.max_new_tokens, plan.context)
        words = _in_article_order(client, prompts, plan) if plan.max_new_tokens else [Written("", True)] * len(prompts)
        contexts = choice_contexts(client.render, plan, words) if plan.labels else []
        check_context(client, contexts, 1, plan.context)
        return llama_choices(client, contexts, plan.labels) if plan.labels else [], words


def choice_contexts(write: Callable[[Messages], str], plan: Plan, words: Sequence[Written]) -> list[str]:
    """Where the label is chosen: after the prompt, and after the model's own reasoning if it reasoned before its answer.

    A model that was taught to reason first has never seen a label right after a prompt.  One whose label is asked for in another
    prompt than its answer (a reference), and one that is not asked for an answer at all, chooses without.
    """
    return [
        write(question.choice) + (reasoning_prefix(found.text) if question.choice == question.answer else "")
        for question, found in zip(plan.questions, words, strict=True)
    ]


def check_llama_logits(client: LlamaClient, prompt: str) -> None:
    """The same in llama.cpp, which shows log-probabilities of what it decodes only."""
    found = (client.complete(prompt, 1, logprobs=1).get("logprobs") or {}).get("content") or [{}]
    value = found[0].get("logprob")
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ModelError(
            "log-probability of a token in llama.cpp",
            f"{value}",
            "a number",
            "this model is broken: look at the step that made it",
        )


def check_context(client: LlamaClient, prompts: Sequence[str], new: int, context: int) -> None:
    """Raises ModelError if a prompt and `new` tokens do not fit: llama.cpp would end the answer early and say that it is whole."""
    likely = [
        prompt for prompt in prompts if len(prompt.encode()) + EXTRA + new > context
    ]  # no token is less than a byte
    needed = max((len(client.tokens(prompt)) for prompt in likely), default=0) + EXTRA + new
    if likely and needed > context:
        got = f"{context} tokens, and the longest prompt with its answer needs {needed}"
        raise ModelError("context", got, f"at least {needed}", f"context: {needed}")


def _in_article_order(client: LlamaClient, prompts: Sequence[str], plan: Plan) -> list[Written]:
    """Greedy answers.  Questions about one article go together: the server then reads their common prefix once."""
    order = sorted(range(len(prompts)), key=lambda index: prompts[index], reverse=plan.backwards)

    def answer(index: int) -> Written:
        found = client.complete(prompts[index], plan.max_new_tokens)
        return Written(str(found["text"]).strip(), found.get("finish_reason") == "stop")

    words: dict[int, Written] = {}
    for index, written in zip(order, track(client.each(answer, order), "answers", len(order)), strict=True):
        words[index] = written
    return [words[index] for index in range(len(prompts))]
