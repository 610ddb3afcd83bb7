"""Rejection filter: which answers of a teacher may be trained on, and why the others may not."""

import re
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.shared.text.chat import normalize, refuses, states_fact
from tasks.shared.text.grounding import DECLINING, invented_addresses, invented_numbers, support
from tasks.shared.text.repetition import repeats

ACCEPTED = ""
MARKUP = re.compile(
    r"<\||\|>|</?\w+>|\[/?INST\]|```|\*\*|^\s*(?:#|[-*] )"
    r"|^\s*(?:question|article|answer|customer|user|assistant|system|agent|bot|policy)\s*:|\b(?:question|article|answer)\s*:"
    r"|\b(?:the|this|our) article\b|\b(?:I am|I'm|as) an? (?:AI|language model)",
    re.IGNORECASE | re.MULTILINE,
)
NEGATION = re.compile(r"\b(?:no|not|never|none|nothing|without|cannot|\w+n't)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Limits:
    """What an accepted answer may be like."""

    min_words: Annotated[int, Field(ge=1)] = 3
    """Fewest words."""
    max_words: Annotated[int, Field(ge=1)] = 40
    """Most words."""
    support: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Smallest fraction of the answer's content words that its sources hold; 0 turns it off."""
    other_numbers: bool = False
    """Keep answers with numbers of the article that belong to other facts than the one asked for."""
    negations: bool = False
    """Keep answers that say "not" or the like where neither gold answer nor question does."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an answer is held against.

    accept: groups of strings, one of each must be stated.  narrow: question, gold answer and accepted strings.
    wide: narrow and the article.  refusal: the right answer declines.
    """

    accept: tuple[tuple[str, ...], ...]
    narrow: str
    wide: str
    refusal: bool = False


def judge(text: str, finish_reason: str, evidence: Evidence, limits: Limits) -> str:
    """Why this answer may not be trained on, in a word or two; "" if it may.

    Form first, then hallucination, then the fact.  For a refusal only `narrow` counts: it must not give another one's reason.
    """
    form = _form(text, finish_reason, limits)
    if form:
        return form
    if invented_numbers(text, evidence.wide):
        return "number"
    if invented_addresses(text, evidence.wide):
        return "address"
    return _declines(text, evidence, limits) if evidence.refusal else _answers(text, evidence, limits)


def _declines(text: str, evidence: Evidence, limits: Limits) -> str:
    if not refuses(text):
        return "no refusal"
    return ACCEPTED if support(text, f"{evidence.narrow}\n{DECLINING}") >= limits.support else "unsupported"


def _answers(text: str, evidence: Evidence, limits: Limits) -> str:
    if refuses(text) and not refuses(evidence.narrow):
        return "refuses"
    if not states_fact(text, evidence.accept):
        return "fact"
    if not limits.other_numbers and invented_numbers(text, evidence.narrow):
        return "other number"
    if not limits.negations and NEGATION.search(normalize(text)) and not NEGATION.search(normalize(evidence.narrow)):
        return "negation"
    return ACCEPTED if support(text, evidence.wide) >= limits.support else "unsupported"


def _form(text: str, finish_reason: str, limits: Limits) -> str:
    words = text.split()
    if not words:
        return "empty"
    if finish_reason != "stop":
        return "unfinished"
    if len(words) < limits.min_words:
        return "too short"
    if len(words) > limits.max_words:
        return "too long"
    if MARKUP.search(text) or "\n" in text.strip():
        return "markup"
    return "repeats" if repeats(text) else ACCEPTED


def close_sentence(text: str) -> str:
    """The answer stripped, with the full stop that a stop string of the request has swallowed."""
    text = text.strip()
    return f"{text}." if text and (text[-1].isalnum() or text[-1] in "'\")%") else text
