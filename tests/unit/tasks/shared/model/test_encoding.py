"""Conversations over the length limit: refused with the longest named, or left out and counted."""

from functools import partial

import pytest

from tasks.shared.model.encoding import LongRowsError, encode, encode_fitting
from tests.tiny_llama import build_tokenizer, make_row


def test_long_conversations_stop_or_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = build_tokenizer()
    words = (3, 4, 200, 5, 300)
    rows = [
        make_row([("user", "Why?"), ("assistant", "word " * count)]).model_copy(update={"id": f"r{count}"})
        for count in words
    ]
    whole = {row.id: one for row, one in zip(rows, encode(rows, tokenizer, 100_000), strict=True)}
    lengths = {name: len(one["input_ids"]) for name, one in whole.items()}
    encoder = partial(encode, tokenizer=tokenizer, max_tokens=lengths["r5"])
    with pytest.raises(LongRowsError, match=f"2 conversations.*r200.*r300(.|\n)*longest has {lengths['r300']}"):
        encode_fitting(encoder, rows, "stop")
    fitting, encoded = encode_fitting(encoder, rows, "drop")
    assert [row.id for row in fitting] == ["r3", "r4", "r5"] and encoded == [whole[row.id] for row in fitting]
    assert "2 of 5 conversations are longer" in caplog.text
    with pytest.raises(LongRowsError, match="too_long=drop"):
        encode_fitting(encoder, rows[2:], "drop"), "most do not fit: the limit is the fault"
