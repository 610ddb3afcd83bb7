"""Calibration rows: as long as they may be, and told when that cuts their answers off."""

import logging
from pathlib import Path

import pytest

from tasks.shared.formats.rows import Message, Row
from tasks.shared.model.calibration import calibration_ids, calibration_rows
from tests.tiny_llama import build_tokenizer, write_corpus


def conversation(question: str) -> Row:
    talk = (Message(role="user", content=question), Message(role="assistant", content="Within ten days."))
    return Row(id=question[:4], group=question[:4], messages=talk)


def test_a_split_with_fewer_rows_than_asked_for_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = write_corpus(tmp_path, 6)
    assert [len(calibration_rows(corpus, count)) for count in (0, 4, 6)] == [6, 4, 6] and not caplog.messages
    assert len(calibration_rows(corpus, 32)) == 6
    assert caplog.messages == ["reads 6 calibration rows instead of 32: the split has no more"]


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
