"""Ask one model everything: loaded once, freed at the end."""

import contextlib
import gc
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from tasks.evaluate.answers import Reply
from tasks.evaluate.completions import LlamaClient
from tasks.evaluate.intent import harness_choices, llama_choices
from tasks.evaluate.perplexity import llama_perplexity, transformers_perplexity
from tasks.evaluate.subjects import Question, Subject
from tasks.shared.errors import ModelError, StillroomError
from tasks.shared.models import generate, has_cpu_bfloat16, load_model, load_tokenizer, render
from tasks.shared.progress import track
from tasks.shared.rows import Row

log = logging.getLogger(__name__)
PARALLEL = 1
"""Requests that llama.cpp decodes together: what shares a batch shares its rounding, so with more the answers and the
perplexity would depend on which request came in first."""


@dataclass(frozen=True)
class Plan:
    """What to ask.  labels: the intents to choose from.  gold: rows whose answers perplexity is taken over; none skips it."""

    questions: Sequence[Question]
    labels: Sequence[str]
    gold: Sequence[Row]
    max_new_tokens: int
    batch_size: int
    context: int


@dataclass(frozen=True)
class Reading:
    """What one model gave: a reply per question, in order, and its perplexity."""

    replies: list[Reply]
    perplexity: float | None


def ask_once(subject: Subject, plan: Plan, scratch: Path, threads: int, device: str) -> Reading:
    """All of a plan, kept in scratch: an evaluation that was killed goes on at the next model.

    Scratch belongs to one key of the step, so a kept reading was made of the same model, rows and settings.
    """
    kept, file = scratch / "readings" / f"{subject.name}.json", TypeAdapter(Reading)
    with contextlib.suppress(ValidationError, OSError):  # cut off by a crash, or not there: ask
        known = file.validate_json(kept.read_bytes())
        if len(known.replies) == len(plan.questions):
            return known
    reading = ask(subject, plan, scratch, threads, device)
    kept.parent.mkdir(exist_ok=True)
    with kept.with_suffix(".part").open("wb") as stream:
        stream.write(file.dump_json(reading))
        stream.flush()
        os.fsync(stream.fileno())
    kept.with_suffix(".part").replace(kept)
    return reading


def ask(subject: Subject, plan: Plan, scratch: Path, threads: int, device: str) -> Reading:
    """All of a plan.  Raises ModelError that names the subject if it cannot be loaded or run."""
    try:
        if subject.engine == "llama.cpp":
            return _ask_llama(subject, plan, threads)
        return _ask_transformers(subject, plan, scratch, threads, device)
    except StillroomError as error:
        where = f"{subject.role} {subject.name} ({subject.weights})"
        raise ModelError(where, f"{error.where}: {error.got}", error.wanted, error.fix) from error
    except (RuntimeError, MemoryError, ValueError, KeyError) as error:
        where = f"{subject.role} {subject.name} ({subject.weights})"
        raise ModelError(
            where, str(error) or type(error).__name__, "a model that loads and answers", "look at the step that made it"
        ) from error


def choose_dtype(device: str) -> Literal["float32", "bfloat16"]:
    """bfloat16 where it is fast: accelerators, and processors with bfloat16 instructions; else float32."""
    return "bfloat16" if device != "cpu" or has_cpu_bfloat16() else "float32"


def _ask_transformers(subject: Subject, plan: Plan, scratch: Path, threads: int, device: str) -> Reading:
    import torch

    torch.set_num_threads(threads)
    model, tokenizer = load_model(subject.weights, choose_dtype(device), device), load_tokenizer(subject.weights)
    try:
        scoring = max(1, plan.batch_size // 4)  # a batch's logits are batch x length x vocabulary
        perplexity = transformers_perplexity(model, tokenizer, plan.gold, scoring) if plan.gold else None
        contexts = [render(tokenizer, question.choice) for question in plan.questions]
        choices = harness_choices(model, tokenizer, contexts, plan.labels, scratch / "harness", scoring)
        words = generate(
            model,
            tokenizer,
            [render(tokenizer, question.answer) for question in plan.questions],
            plan.max_new_tokens,
            plan.batch_size,
        )
    finally:
        del model
        gc.collect()  # before the next model is loaded
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return Reading([Reply(choice, text) for choice, text in zip(choices, words, strict=True)], perplexity)


def _ask_llama(subject: Subject, plan: Plan, threads: int) -> Reading:
    from tasks.shared.llama_server import serve

    with serve(subject.weights, threads=threads, parallel=PARALLEL, context=plan.context) as url:
        client = LlamaClient(url, PARALLEL)
        perplexity = llama_perplexity(client, plan.gold) if plan.gold else None
        choices = llama_choices(client, [client.render(question.choice) for question in plan.questions], plan.labels)
        words = _in_article_order(client, plan)
    return Reading([Reply(choice, text) for choice, text in zip(choices, words, strict=True)], perplexity)


def _in_article_order(client: LlamaClient, plan: Plan) -> list[str]:
    """Greedy answers.  Questions about one article go together: the server then reads their common prefix once."""
    prompts = [client.render(question.answer) for question in plan.questions]
    order = sorted(range(len(prompts)), key=lambda index: prompts[index])

    def answer(index: int) -> str:
        return str(client.complete(prompts[index], plan.max_new_tokens)["text"]).strip()

    words = [""] * len(prompts)
    for index, text in zip(order, track(client.each(answer, order), "answers", len(order)), strict=True):
        words[index] = text
    return words
