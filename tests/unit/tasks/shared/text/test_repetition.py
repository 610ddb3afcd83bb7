"""Loops in answers."""

import pytest

from tasks.shared.text.repetition import repeats


@pytest.mark.parametrize(
    "text",
    ["return, return, return it", "You have 45 days to return it and you have 45 days to return it.", "no No NO way"],
)
def test_a_loop_is_seen(text: str) -> None:
    assert repeats(text)


@pytest.mark.parametrize("text", ["", "word", "Send us a photo of the label and we send the piece."])
def test_a_plain_sentence_does_not_repeat(text: str) -> None:
    assert not repeats(text)
