"""Facts and refusals found in the text of an answer."""

import re
import unicodedata
from collections.abc import Sequence

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


UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
"""Letters of scripts whose words are written without spaces, or with particles attached: Thai, kana, Chinese, Hangul."""
LETTER = rf"[^\W{UNSPACED}]"


def contains(text: str, phrase: str) -> bool:
    """Return True if `text` contains `phrase` as whole words.

    For example, "45 days" does not contain "5 days", nor "12.5" "12".  Scripts without spaces have no borders of words.
    """
    phrase = normalize(phrase)
    before = "" if re.match(f"[{UNSPACED}]", phrase) else rf"(?<!{LETTER})(?<!\.)"
    after = "" if re.search(f"[{UNSPACED}]$", phrase) else rf"(?!{LETTER}|[.,]\d)"
    return re.search(before + re.escape(phrase) + after, normalize(text)) is not None


def states_fact(text: str, accept: Sequence[Sequence[str]]) -> bool:
    """Return True if the answer contains a string of every group; False without groups."""
    return bool(accept) and all(any(contains(text, phrase) for phrase in group) for group in accept)


def refuses(text: str) -> bool:
    """Return True if the answer declines in English ("I can't help with ...")."""
    return declines(text)


def declines(text: str, refusals: Sequence[str] = ()) -> bool:
    """Return True if the answer declines.

    refusals: regular expressions that match an answer that declines, in any case of letters; empty takes common English phrases.
    """
    text = text.replace("’", "'")
    if refusals:
        return any(re.search(pattern.replace("’", "'"), text, re.IGNORECASE) for pattern in refusals)
    return REFUSALS.search(text) is not None
