"""Detection of answers that repeat themselves."""

import re

from tasks.shared.text.fact_matching import normalize


def repeats(text: str) -> bool:
    """Return True if the answer repeats five words in a row, or one word three times running."""
    words = re.findall(r"\w+", normalize(text))
    fives = [tuple(words[start : start + 5]) for start in range(len(words) - 4)]
    threes = zip(words, words[1:], words[2:], strict=False)
    return len(fives) != len(set(fives)) or any(len(set(three)) == 1 for three in threes)
