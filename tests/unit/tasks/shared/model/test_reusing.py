"""Answers that reuse what was computed are those of one prompt at a time."""

from functools import wraps
from typing import Any

import pytest
import torch

from tasks.shared.engines.transformers_engine import TransformersSession
from tasks.shared.model import reusing
from tasks.shared.model.prompts import render
from tasks.shared.model.reusing import SHARED, WHOLE
from tests.families import FAMILIES
from tests.tiny_llama import build_model, build_tokenizer, sentences

LABELS = ["returns", "warranty", "other", "return"]


def prompts_of(tokenizer: Any, passages: int = 4, questions: int = 3) -> list[str]:
    """Questions that share passages of different lengths, and some without one."""
    shown = [" ".join(sentences(2 + number % 2, seed=number)) for number in range(passages)]
    texts = [f"{text} {ask}" for place, text in enumerate(shown) for ask in sentences(questions, seed=50 + place)]
    talks = [[{"role": "user", "content": text}] for text in [*texts, *sentences(3, seed=99)]]
    rendered = [render(tokenizer, talk) for talk in talks]
    return [f"{prompt}{index % 10}" for index, prompt in enumerate(rendered)]  # random weights heed the last token most


def watched(model: Any) -> list[tuple[int, int]]:
    """Return a list that collects the shape of every batch that a model computes."""
    shapes, forward = [], model.forward

    @wraps(forward)
    def count(*args: Any, **options: Any) -> Any:
        shapes.append(tuple((options["input_ids"] if "input_ids" in options else args[0]).shape))
        return forward(*args, **options)

    model.forward = count
    return shapes


def tokens_read(shapes: list[tuple[int, int]]) -> int:
    """Return the tokens of all passes over prompts so far, and forget them."""
    found = sum(rows * tokens for rows, tokens in shapes if tokens > 1)
    shapes.clear()
    return found


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_answers_as_without_reuse(kind: str) -> None:
    model, tokenizer = FAMILIES[kind].build(), build_tokenizer()
    prompts = prompts_of(tokenizer, 2)
    session = TransformersSession(model, tokenizer, 4, reuse=True)
    assert session.answer(prompts, 12) == TransformersSession(model, tokenizer, 4).answer(prompts, 12)
    assert session.reading in (SHARED, WHOLE)


def test_a_llama_reads_shared_beginnings_once_and_answers_as_before() -> None:
    model, tokenizer = build_model(), build_tokenizer()
    prompts = prompts_of(tokenizer, 2, 8)
    session, plain = TransformersSession(model, tokenizer, 8, reuse=True), TransformersSession(model, tokenizer, 8)
    shapes = watched(model)
    wanted, before = plain.answer(prompts, 12), tokens_read(shapes)
    assert session.answer(prompts, 12) == wanted
    tokens_read(shapes)  # the check included
    found, after = session.answer(prompts, 12), tokens_read(shapes)
    assert found == wanted and session.reading == SHARED and len({answer.text for answer in found}) > 2
    assert after < 0.75 * before, "padding included"
    assert session.answer(prompts, 12, ["e", "45"]) == plain.answer(prompts, 12, ["e", "45"])


def test_labels_of_answers_are_those_of_a_pass_of_their_own() -> None:
    model, tokenizer = build_model(), build_tokenizer()
    prompts = prompts_of(tokenizer) + [f"{prompt}returns" for prompt in prompts_of(tokenizer, 1)]
    session = TransformersSession(model, tokenizer, 8, reuse=True)
    for labels in (list("abcdefgh"), LABELS):
        found = [answer.label for answer in session.answer(prompts, 4, labels=labels)]
        wanted = session.choose(prompts, labels).labels
        assert all(own in ("", other) for own, other in zip(found, wanted, strict=True))
        if labels is not LABELS:
            assert sum(map(bool, found)) > len(prompts) // 2, "labels of one token are known at the first"


def test_answers_that_ended_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reusing, "CHUNK", 2)
    model, tokenizer = build_model(), build_tokenizer()
    prompts, plain = prompts_of(tokenizer), TransformersSession(model, tokenizer, 16)
    texts = [answer.text for answer in plain.answer(prompts, 12)]
    ends = [session_ids[3] for text in texts[:2] if len(session_ids := plain.tokens(text)) > 3]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *ends]
    wanted = plain.answer(prompts, 12)
    assert any(answer.ended for answer in wanted) and not all(answer.ended for answer in wanted)
    shapes = watched(model)
    assert TransformersSession(model, tokenizer, 16, reuse=True).answer(prompts, 12) == wanted
    assert shapes[-1][0] < max(rows for rows, _ in shapes)


def test_a_model_that_computes_otherwise_after_a_cache_is_noticed_and_reads_prompts_whole() -> None:
    model, tokenizer = build_model(), build_tokenizer()
    prompts, forward = prompts_of(tokenizer), model.forward
    wanted = TransformersSession(model, tokenizer, 8).answer(prompts, 8)

    @wraps(forward)
    def shifted(*args: Any, **options: Any) -> Any:
        cache = options.get("past_key_values")
        ids = options["input_ids"] if "input_ids" in options else args[0]
        behind = cache is not None and cache.get_seq_length() > 0 and ids.shape[1] > 1
        output = forward(*args, **options)
        if behind:
            output.logits = output.logits + torch.linspace(0, 9, output.logits.shape[-1])
        return output

    model.forward = shifted
    session = TransformersSession(model, tokenizer, 8, reuse=True)
    assert session.answer(prompts, 8) == wanted and session.reading == WHOLE
