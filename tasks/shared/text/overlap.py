"""Similarity of test questions to training questions: Jaccard index of character 5-grams.

An edited copy keeps most of its 5-grams, a paraphrase does not.  Two typos in 60 letters change about ten 5-grams, for a
similarity near 0.7; a greeting in front leaves about 0.6; the same question in other words has 0.05 to 0.2, and a question in
similar words about another matter of the same field up to 0.3.
Source: Broder 1997, "On the resemblance and containment of documents", section 2.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from tasks.shared.errors import DataError
from tasks.shared.formats.articles import question_of
from tasks.shared.formats.rows import Row
from tasks.shared.text.fact_matching import normalize

if TYPE_CHECKING:
    import numpy as np

SHINGLE = 5
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F)
"""Odd numbers of 64 bits, one for each place of a shingle: two shingles share a value by chance once in 10^19 pairs."""


def plain_text(text: str) -> str:
    """Text as it is compared: normalized, without punctuation."""
    return re.sub(r"[^\w ]+", "", normalize(text)).strip()


def shingles(text: str) -> "np.ndarray":
    """Distinct values of a text's character 5-grams, sorted, without punctuation and case.

    A shorter text is one shingle.
    """
    import numpy as np

    codes = np.frombuffer(plain_text(text).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    count = max(1, len(codes) - SHINGLE + 1)
    found = np.zeros(count, dtype=np.uint64)
    for place, multiplier in enumerate(MULTIPLIERS):
        part = codes[place : place + count]
        found[: len(part)] += part * np.uint64(multiplier)
    return np.unique(found)


def user_text(row: Row) -> str:
    """Join the user's turns of a conversation as lines, without an article in the prompt."""
    return "\n".join(question_of(message.content) for message in row.messages if message.role == "user")


class TextIndex:
    """Index of shingles that finds the exact similarity of a text to every known text."""

    def __init__(self, texts: Iterable[str]) -> None:
        import numpy as np

        self.texts = list(dict.fromkeys(texts))
        grams = [shingles(text) for text in self.texts]
        self.sizes = np.array([len(found) for found in grams], dtype=np.int64)
        values = np.concatenate(grams) if grams else np.zeros(0, dtype=np.uint64)
        owners = np.repeat(np.arange(len(grams), dtype=np.int32), self.sizes)
        order = np.argsort(values, kind="stable")
        self._owners = owners[order]
        self._values, self._starts = np.unique(values[order], return_index=True)
        self._starts = np.append(self._starts, len(values))

    def similarities(self, text: str) -> "np.ndarray":
        """Similarity (0..1) of a text to every known text, in the order of `texts`."""
        import numpy as np

        grams = shingles(text)
        if not len(self.texts):
            return np.zeros(0)
        places = np.minimum(np.searchsorted(self._values, grams), len(self._values) - 1)
        places = places[self._values[places] == grams]
        pieces = [self._owners[self._starts[place] : self._starts[place + 1]] for place in places.tolist()]
        if not pieces:
            return np.zeros(len(self.texts))
        shared = np.bincount(np.concatenate(pieces), minlength=len(self.texts))
        return shared / (len(grams) + self.sizes - shared)

    def nearest(self, text: str) -> tuple[float, str]:
        """Similarity (0..1) and text of the nearest known text; (0.0, "") if no shingle is shared."""
        found = self.similarities(text)
        place = int(found.argmax()) if len(found) else -1
        return (float(found[place]), self.texts[place]) if place >= 0 and found[place] > 0 else (0.0, "")


@dataclass(frozen=True)
class Overlap:
    """Statistics over the test texts' similarities to their nearest texts in the other splits."""

    limit: float
    max: float
    p95: float
    median: float


def overlap_of(limit: float, nearest: Iterable[float]) -> Overlap:
    """Statistics of similarities; at least one."""
    values = sorted(nearest)
    return Overlap(limit, values[-1], values[int(0.95 * (len(values) - 1))], median(values))


def check_overlap(test: Sequence[Row], known: Sequence[Row], limit: float) -> Overlap:
    """Measure the similarity of test conversations to the other splits; refuse near-copies.

    limit: largest allowed similarity, 0..1.
    Raises DataError that lists up to five near-copies, or phrasing groups that are on both sides.
    """
    both = sorted({row.group for row in test} & {row.group for row in known})
    if both:
        raise DataError(
            "test split",
            f"{len(both)} phrasing groups also in train or calibration: {', '.join(both[:5])}",
            "groups on one side only",
            "move all rows of a group to the same split",
        )
    index = TextIndex(user_text(row) for row in known)
    nearest = [(*index.nearest(user_text(row)), row.id) for row in test]
    bad = sorted((item for item in nearest if item[0] > limit), reverse=True)
    if bad:
        shown = "\n    ".join(f"{name}: {value:.2f} to {text!r}" for value, text, name in bad[:5])
        raise DataError(
            "test split",
            f"{len(bad)} of {len(test)} conversations copy a training one\n    {shown}",
            f"similarity of at most {limit}",
            "delete them from the test, or raise max_similarity if they are true paraphrases",
        )
    return overlap_of(limit, (value for value, _, _ in nearest))
