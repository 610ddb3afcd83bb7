"""Reference answers."""

import pytest

from tasks.shared.grading.texts import matches_reference, rouge_l


def test_the_nearest_reference_counts() -> None:
    assert rouge_l("a b c", ("x y z", "a b c")) == 1.0
    assert rouge_l("a b c d", ("a b",)) == pytest.approx(2 / 3)
    assert matches_reference("Within 45  DAYS.", ("no", "within 45 days."))


def test_scripts_without_spaces_have_words() -> None:
    assert 0 < rouge_l("\u53ef\u4ee5\u9000\u8d27", ("\u53ef\u4ee5\u6362\u8d27",)) < 1
