"""Asking llama.cpp: what does not fit is told before anything is asked."""

import pytest

from tasks.evaluate.asking.ask import EXTRA, check_context
from tasks.evaluate.asking.completions import LlamaClient
from tasks.shared.errors import ModelError


class Counting(LlamaClient):
    """One token per word."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9/v1")
        self.asked: list[str] = []

    def tokens(self, text: str) -> list[int]:
        self.asked.append(text)
        return [0] * len(text.split())


def test_an_answer_that_the_context_would_cut_is_refused_with_the_number_that_is_needed() -> None:
    client = Counting()
    check_context(client, ["words " * 20, "short", "words " * 30], 32, 32 + 30 + EXTRA)
    assert client.asked == ["words " * 20, "words " * 30], "what fits by its bytes needs no counting"
    with pytest.raises(ModelError, match=r"context: 63 tokens, .*needs 64\n.*at least 64\n.*context: 64"):
        check_context(client, ["words " * 30, "words"], 32, 63)
    check_context(client, [], 32, 10)
