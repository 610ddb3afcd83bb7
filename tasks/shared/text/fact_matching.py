"""Facts and refusals found in the text of an answer."""

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


REFUSALS = re.compile(
    r"\b(?:can(?:no|')t|cannot|can not|unable to|not able to|not allowed to|won't|will not|must not)\b"
    r"[^.?!]{0,40}?\b(?:help|share|give|provide|advise|assist|discuss|do|answer|look up|change|disclose|support|offer|comment)\b",
    re.IGNORECASE,
)


def normalize(text: str) -> str:
    """Normalize text for comparison of facts.

    The result is lower-case and NFKC, with straight quotes and single spaces, without thousands separators.
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    return re.sub(r"\s+", " ", text).strip()


def contains(text: str, phrase: str) -> bool:
    """Return True if `text` contains `phrase` as whole words.

    For example, "45 days" does not contain "5 days", nor "12.5" "12".
    """
    pattern = r"(?<![\w.])" + re.escape(normalize(phrase)) + r"(?!\w|[.,]\d)"
    return re.search(pattern, normalize(text)) is not None


def states_fact(text: str, accept: Sequence[Sequence[str]]) -> bool:
    """Return True if the answer contains a string of every group; False without groups."""
    return bool(accept) and all(any(contains(text, phrase) for phrase in group) for group in accept)


def refuses(text: str) -> bool:
    """Return True if the answer declines ("I can't help with ...")."""
    return REFUSALS.search(text.replace("’", "'")) is not None
