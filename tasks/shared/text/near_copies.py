"""Near-copies: texts so similar that one gives away the other, at any length."""

import re

from tasks.shared.text.overlap import plain_text

LONG = 20
"""Words from which the limit is the one that was set."""
SHORT = 10
"""Words up to which the limit is `SHORT_LIMIT`."""
SHORT_LIMIT = 0.75
"""Limit for short texts, unless a larger one is set: utterances of the same domain share half of their 5-grams by their topic."""
SAME = 0.85
"""Similarity from which a short text is a copy whatever its words: a typo changes a whole word."""
LETTERS_PER_WORD = 6


def words_of(text: str) -> list[str]:
    """Words of a text without punctuation and case."""
    return re.findall(r"\w+", plain_text(text))


def length(text: str) -> int:
    """Length in words; in scripts without spaces, six letters count as a word."""
    return max(len(text.split()), len(text) // LETTERS_PER_WORD)


def copy_limit(words: int, limit: float) -> float:
    """Similarity above which texts of this length are near-copies.

    limit: for texts of at least `LONG` words.  Shorter texts need more: it rises to `SHORT_LIMIT` at `SHORT` words.
    """
    short = max(limit, SHORT_LIMIT)
    share = min(1.0, max(0.0, (LONG - words) / (LONG - SHORT)))
    return limit + share * (short - limit)


def is_copy(similarity: float, first: str, second: str, limit: float) -> bool:
    """Return True if two texts are near-copies.

    similarity: Jaccard index of their character 5-grams.  limit: for long texts.  Texts of less than `LONG` words must also share
    as many of their words, unless they are the same but for a letter or two.
    """
    if similarity <= limit:
        return False
    words = min(length(first), length(second))
    allowed = copy_limit(words, limit)
    if similarity <= allowed:
        return False
    if words >= LONG or similarity > max(SAME, limit):
        return True
    one, two = set(words_of(first)), set(words_of(second))
    if min(len(one), len(two)) < 3:  # too few words, or a script without spaces
        return True
    return len(one & two) / len(one | two) > allowed
