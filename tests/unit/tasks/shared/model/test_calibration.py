"""Calibration rows: as long as they may be, and told when that cuts their answers off."""

import logging

import pytest

from tasks.shared.formats.rows import Message, Row
from tasks.shared.model.calibration import calibration_ids
from tests.tiny_llama import build_tokenizer


def conversation(question: str) -> Row:
    talk = (Message(role="user", content=question), Message(role="assistant", content="Within ten days."))
    return Row(id=question[:4], group=question[:4], messages=talk)


def test_conversations_that_lose_their_answers_are_told(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = build_tokenizer()
    rows = [
        conversation("how long do I have to wait for it " * 8),
        conversation("when does it come " * 12),
        conversation("when"),
    ]
    with caplog.at_level(logging.WARNING):
        whole = calibration_ids(tokenizer, rows, 10_000)
        assert caplog.messages == []
        cut = calibration_ids(tokenizer, rows, 24)
    longest = max(map(len, whole))
    assert caplog.messages == [
        f"2 of 3 calibration conversations lose their end, where the answer is, at max_tokens=24; the longest has {longest} tokens"
    ]
    assert cut == [ids[:24] for ids in whole]
