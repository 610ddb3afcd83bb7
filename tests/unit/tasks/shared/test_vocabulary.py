"""The record of a trimmed vocabulary: written and read back, and told when it is missing or damaged."""

from pathlib import Path

import pytest

from tasks.shared.errors import DataError
from tasks.shared.vocabulary import VOCABULARY_FILE, Trial, Trimming, read_trimming, write_trimming

TRIMMING = Trimming(
    tokens_before=9, tokens=3, merges_before=4, merges=1, rows_before=16, parameters_before=100, parameters=40, used=2,
    held_out=Trial(texts=2, tokens_per_text_before=5.0, tokens_per_text=5.5, kept=0.9), old_ids=(0, 4, 7),
)  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_trimming(tmp_path, TRIMMING)
    assert read_trimming(tmp_path) == TRIMMING


def test_a_missing_record_is_told_with_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prune/vocabulary"):
        read_trimming(tmp_path)


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    (tmp_path / VOCABULARY_FILE).write_text('{"tokens": 3', "utf-8")
    with pytest.raises(DataError, match="not a record"):
        read_trimming(tmp_path)
