"""Generation in llama.cpp: prompts that exceed the context are refused before any request."""

import pytest

from tasks.evaluate.models_under_test.answering import SPECIAL_TOKENS, GenerationPlan, check_context, choice_contexts
from tasks.evaluate.models_under_test.model_under_test import reference_prompts, tuned_prompts
from tasks.shared.engines.llama_client import LlamaClient
from tasks.shared.errors import ModelError
from tasks.shared.formats.rows import Message
from tasks.shared.model.generation import Written
from tests.support_rows import support_row


class Counting(LlamaClient):
    """Client with one token per word."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9/v1")
        self.asked: list[str] = []

    def tokens(self, text: str) -> list[int]:
        self.asked.append(text)
        return [0] * len(text.split())


def test_an_answer_that_the_context_would_cut_is_refused_with_the_number_that_is_needed() -> None:
    client = Counting()
    check_context(client, ["words " * 20, "short", "words " * 30], 32, 32 + 30 + SPECIAL_TOKENS)
    assert client.asked == ["words " * 20, "words " * 30], "what fits by its bytes needs no counting"
    with pytest.raises(ModelError, match=r"context: 63 tokens, .*needs 64\n.*at least 64\n.*context: 64"):
        check_context(client, ["words " * 30, "words"], 32, 63)
    check_context(client, [], 32, 10)


def test_a_label_is_chosen_after_the_models_own_reasoning() -> None:
    turns = (Message(role="user", content="q"), Message(role="assistant", content="i\na"))
    row = support_row(id="a", intent="i", group="g", messages=turns)
    tuned, other = tuned_prompts([row])[0], reference_prompts([row], {}, ["i"])[0]
    plan = GenerationPlan([tuned, tuned, tuned, other], ["i"], True, 8, 1, 64)
    words = [
        Written(text, True)
        for text in ("i\na", "<think>\nt\n</think>\n\ni\na", "<think>\nt", "<think>\nt\n</think>\na")
    ]
    told = choice_contexts(lambda messages: "P", plan, words)
    assert told == ["P", "P<think>\nt\n</think>\n\n", "P", "P"]
