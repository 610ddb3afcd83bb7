"""Similarity of texts: exact, and quick enough to compare every test row with every training row."""

import random
import re

import pytest

from tasks.shared.errors import DataError
from tasks.shared.formats.rows import Message, Row
from tasks.shared.text.fact_matching import normalize
from tasks.shared.text.overlap import TextIndex, check_overlap, overlap_of, shingles


def grams(text: str) -> set[str]:
    """The definition: distinct character 5-grams of the plain text."""
    plain = re.sub(r"[^\w ]+", "", normalize(text)).strip()
    return {plain[place : place + 5] for place in range(max(1, len(plain) - 4))}


def texts(count: int) -> list[str]:
    draw = random.Random(3)
    words = "where is my lamp größe 日本語 order 4417 it comes tomorrow ok no. Yes! please cancel".split()  # noqa: SIM905
    return [" ".join(draw.choices(words, k=draw.randrange(1, 14))) for _ in range(count)] + ["a", "", "hi!", "日本"]


def test_similarities_are_those_of_sets_of_5_grams() -> None:
    known, asked = texts(200), texts(260)[200:]
    index = TextIndex(known)
    for text in asked:
        found = index.similarities(text)
        for other, value in zip(index.texts, found, strict=True):
            one, two = grams(text), grams(other)
            assert value == pytest.approx(len(one & two) / len(one | two)), (text, other)
        best, near = index.nearest(text)
        assert best == pytest.approx(found.max()) and (best == 0 or near in index.texts)


def test_an_index_of_nothing() -> None:
    assert TextIndex([]).nearest("text") == (0.0, "")
    assert len(shingles("")) == len(shingles("abc")) == 1


def row(name: str, text: str, group: str = "") -> Row:
    return Row(id=name, messages=(Message(role="user", content=text),), group=group or name)


def test_copies_and_shared_groups_are_refused() -> None:
    known = [row("a", "How long do I have to return it?"), row("b", "Where is my parcel now?")]
    assert check_overlap([row("t", "What does the guarantee cover?")], known, 0.5).max < 0.2
    with pytest.raises(DataError, match=r"(?s)1 of 1 conversations copy.*t: 0.9"):
        check_overlap([row("t", "How long do I have to return itt?")], known, 0.5)
    with pytest.raises(DataError, match="groups also in train"):
        check_overlap([row("t", "Something else", "a")], known, 0.5)


def test_statistics_of_similarities() -> None:
    found = overlap_of(0.5, [0.1, 0.2, 0.3, 0.9])
    assert (found.limit, found.max, found.p95, found.median) == (0.5, 0.9, 0.3, 0.25)
