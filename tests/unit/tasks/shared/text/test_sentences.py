"""Where sentences end."""

from tasks.shared.text.sentences import sentences


def test_sentences_keep_their_marks_and_numbers() -> None:
    assert sentences("It costs £4.95. Why?\nBecause!  Yes") == ["It costs £4.95.", "Why?", "Because!", "Yes"]
    assert sentences("One") == ["One"]
