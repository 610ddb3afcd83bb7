"""Whose token is which, in padded, trimmed and foreign vocabularies."""

import pytest
import torch

from tasks.distill.vocabulary import match_vocabularies
from tasks.shared.errors import ModelError

WHOLE = {f"t{number}": number for number in range(100)}


def test_the_same_vocabulary_needs_no_table() -> None:
    family = match_vocabularies(WHOLE, dict(WHOLE))
    assert family.same and family.columns(100, 100) is None
    assert family.teacher_ids([3, -100, 99]) == [3, -100, 99]


def test_a_padded_head_has_rows_of_nobody() -> None:
    columns = match_vocabularies(WHOLE, WHOLE).columns(104, 100)
    assert columns is not None and columns.tolist() == [*range(100), -1, -1, -1, -1]
    assert match_vocabularies(WHOLE, WHOLE).columns(100, 128) is not None


def test_a_trimmed_student_keeps_the_teachers_tokens_under_numbers_of_its_own() -> None:
    trimmed = {f"t{number}": place for place, number in enumerate(range(10, 60))}
    family = match_vocabularies(trimmed, WHOLE)
    assert not family.same and family.teacher_ids([0, -100, 49]) == [10, -100, 59]
    assert int(family.to_student[10]) == 0 and int(family.to_student[9]) == -1
    torch.testing.assert_close(family.to_teacher, torch.arange(10, 60))


def test_a_token_that_the_teacher_lacks_is_told() -> None:
    family = match_vocabularies({**WHOLE, "own": 100}, WHOLE)
    assert family.teacher_ids([1, 100]) is None and family.teacher_ids([1, 2]) == [1, 2]


def test_another_tokenizer_is_refused() -> None:
    foreign = {f"t{number}" if number < 50 else f"u{number}": number for number in range(100)}
    with pytest.raises(ModelError, match="share 50 of the student's 100 tokens"):
        match_vocabularies(foreign, WHOLE)
