"""Beginnings and ends that many texts share, such as one instruction before every question."""

import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

FEW = 8
"""Fewest texts that make a shared beginning."""
LEVELS = ((0.5, 12), (0.02, 40))
"""Share of the texts that must begin alike, and fewest letters of the beginning.  Half of the texts may share a short instruction; a
fiftieth, only one that is longer than what questions of the same domain share by nature."""
LONGEST = 4000
"""Letters of a beginning or an end that are looked at."""
LEFT = 12
"""Median of the letters that must remain: copies of one text share all of it, and must stay comparable."""
DISTINCT = 0.5
"""Share of the remainders that must differ."""


@dataclass(frozen=True)
class Affixes:
    """Shared beginnings and ends, the longest first."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def cut(self, text: str) -> str:
        """Return a text without its shared beginning and end; whole if nothing would remain."""
        start = next((len(prefix) for prefix in self.before if text.startswith(prefix)), 0)
        end = next((len(suffix) for suffix in self.after if text.endswith(suffix)), 0)
        rest = text[start : len(text) - end].strip()
        return rest if rest and start + end < len(text) else text


def find_affixes(texts: Sequence[str]) -> Affixes:
    """Find the beginnings and ends that many of the texts share."""
    before = _prefixes(texts)
    bare = [Affixes(before).cut(text) for text in texts]
    after = _prefixes([text[::-1] for text in bare])
    return Affixes(before, tuple(suffix[::-1] for suffix in after))


def ends_of(text: str) -> str:
    """Beginning and end of a long text: enough for `find_affixes`, at a bounded size."""
    return text if len(text) <= 2 * LONGEST else text[:LONGEST] + text[-LONGEST:]


def _prefixes(texts: Sequence[str]) -> tuple[str, ...]:
    ordered = sorted(text[:LONGEST] for text in texts)
    found: set[str] = set()
    for share, least in LEVELS:
        number = max(FEW, round(share * len(texts)))
        if len(texts) >= number:
            found = {*found, *_without_words(_shared(ordered, number, least), found, least)}
    return tuple(sorted(found, key=len, reverse=True))


def _without_words(found: set[str], known: set[str], least: int) -> list[str]:
    """Beginnings without the first words of the texts behind them that many texts share.

    known: beginnings of more texts.  least: letters by which a beginning must be longer than another to be one of its own.
    """
    merged: list[str] = []
    for prefix in sorted(found):
        common = _common(merged[-1], prefix) if merged else 0
        if common >= least and max(len(merged[-1]), len(prefix)) - common < least:
            merged[-1] = _whole_words(prefix[:common], prefix)
        else:
            merged.append(prefix)
    return [
        one for one in merged if not any(one.startswith(other) and len(one) - len(other) < least for other in known)
    ]


def _shared(ordered: Sequence[str], number: int, least: int) -> set[str]:
    """Longest beginnings, in whole words, that `number` neighbors in sorted order share."""
    lengths = [_common(ordered[place], ordered[place + number - 1]) for place in range(len(ordered) - number + 1)]
    rests: dict[str, list[str]] = {}
    window: deque[int] = deque()  # places of decreasing lengths within the last `number`
    for place, text in enumerate(ordered):
        if place < len(lengths):
            while window and lengths[window[-1]] <= lengths[place]:
                window.pop()
            window.append(place)
        while window[0] <= place - number:
            window.popleft()
        prefix = _whole_words(text[: lengths[window[0]]], text)
        if len(prefix) >= least:
            rests.setdefault(prefix, []).append(text[len(prefix) :])
    return {
        prefix
        for prefix, found in rests.items()
        if len(found) >= FEW and median(map(len, found)) >= LEFT and len(Counter(found)) >= DISTINCT * len(found)
    }


def _whole_words(prefix: str, text: str) -> str:
    """A beginning up to the last gap between words."""
    if len(prefix) == len(text) or not (prefix[-1:].isalnum() and text[len(prefix)].isalnum()):
        return prefix
    found = re.match(r".*\W", prefix, re.DOTALL)
    return found[0] if found else ""


def _common(first: str, second: str) -> int:
    """Number of letters at the beginning that two texts share."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
