"""Similarity of test questions to training questions: Jaccard index of character 5-grams.

An edited copy keeps most of its 5-grams, a paraphrase does not.  Two typos in 60 letters change about ten 5-grams, for a
similarity near 0.7; a greeting in front leaves about 0.6; the same question in other words has 0.05 to 0.2, and a question in
similar words about another matter of the same shop up to 0.3.
Source: Broder 1997, "On the resemblance and containment of documents", section 2.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from tasks.shared.errors import DataError
from tasks.shared.formats.articles import question_of
from tasks.shared.formats.rows import Row
from tasks.shared.text.fact_matching import normalize

SHINGLE = 5


def shingles(text: str) -> frozenset[str]:
    """Character 5-grams of a text without punctuation and case; a shorter text is one shingle."""
    plain = re.sub(r"[^\w ]+", "", normalize(text)).strip()
    return frozenset(plain[i : i + SHINGLE] for i in range(max(1, len(plain) - SHINGLE + 1)))


def user_text(row: Row) -> str:
    """Join the user's turns of a conversation as lines, without an article in the prompt."""
    return "\n".join(question_of(message.content) for message in row.messages if message.role == "user")


class TextIndex:
    """Index that finds the most similar known text exactly, by an inverted index of shingles."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = list(dict.fromkeys(texts))
        self._sizes: list[int] = []
        self._places: dict[str, list[int]] = defaultdict(list)
        for place, text in enumerate(self.texts):
            grams = shingles(text)
            self._sizes.append(len(grams))
            for gram in grams:
                self._places[gram].append(place)

    def nearest(self, text: str) -> tuple[float, str]:
        """Similarity (0..1) and text of the nearest known text; (0.0, "") if no shingle is shared."""
        grams = shingles(text)
        shared = Counter(place for gram in grams for place in self._places.get(gram, ()))
        best = max(
            ((n / (len(grams) + self._sizes[place] - n), place) for place, n in shared.items()), default=(0.0, -1)
        )
        return best[0], self.texts[best[1]] if best[1] >= 0 else ""


@dataclass(frozen=True)
class Overlap:
    """Statistics over the test texts' similarities to their nearest texts in the other splits."""

    limit: float
    max: float
    p95: float
    median: float


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
    values = sorted(value for value, _, _ in nearest)
    return Overlap(limit, values[-1], values[int(0.95 * (len(values) - 1))], median(values))
