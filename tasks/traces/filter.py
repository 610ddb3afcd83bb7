"""Rejection filter for a teacher's answers: accept one for training, or name its defect."""

import re
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.shared.text.fact_matching import normalize, refuses, states_fact
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
    """Limits that an accepted answer must keep."""

    min_words: Annotated[int, Field(ge=1)] = 3
    """Fewest words of an answer."""
    max_words: Annotated[int, Field(ge=1)] = 40
    """Most words of an answer."""
    support: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Smallest fraction of the answer's content words that its sources contain; 0 turns the check off."""
    other_numbers: bool = False
    """Keep answers with numbers from the article that belong to other facts."""
    negations: bool = False
    """Keep answers with a negation that neither the gold answer nor the question has."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Texts that an answer is checked against.

    accept: groups of strings; the answer must contain one string of each group.
    narrow: question, gold answer and accepted strings.
    wide: narrow and the article.
    refusal: True if the correct answer declines.
    """

    accept: tuple[tuple[str, ...], ...]
    narrow: str
    wide: str
    refusal: bool = False


def judge(text: str, finish_reason: str, evidence: Evidence, limits: Limits) -> str:
    """Return the reason for rejecting an answer, in a word or two; "" if it is accepted.

    The order is form, hallucination, fact.  A refusal is checked against `narrow` alone, so that it cannot state the reason of
    another refusal.
    """
    form = _judge_form(text, finish_reason, limits)
    if form:
        return form
    if invented_numbers(text, evidence.wide):
        return "number"
    if invented_addresses(text, evidence.wide):
        return "address"
    return _judge_refusal(text, evidence, limits) if evidence.refusal else _judge_answer(text, evidence, limits)


def _judge_refusal(text: str, evidence: Evidence, limits: Limits) -> str:
    if not refuses(text):
        return "no refusal"
    return ACCEPTED if support(text, f"{evidence.narrow}\n{DECLINING}") >= limits.support else "unsupported"


def _judge_answer(text: str, evidence: Evidence, limits: Limits) -> str:
    if refuses(text) and not refuses(evidence.narrow):
        return "refuses"
    if not states_fact(text, evidence.accept):
        return "fact"
    if not limits.other_numbers and invented_numbers(text, evidence.narrow):
        return "other number"
    if not limits.negations and NEGATION.search(normalize(text)) and not NEGATION.search(normalize(evidence.narrow)):
        return "negation"
    return ACCEPTED if support(text, evidence.wide) >= limits.support else "unsupported"


def _judge_form(text: str, finish_reason: str, limits: Limits) -> str:
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
    """Return the answer stripped, with the final period that a stop string removed."""
    text = text.strip()
    return f"{text}." if text and (text[-1].isalnum() or text[-1] in "'\")%") else text
