"""Rejection filter: which answers of a teacher may be trained on, and why the others may not."""

import re
from itertools import pairwise
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.shared.chat import normalise, refuses, states_fact
from tasks.shared.repetition import repeats

ACCEPTED = ""
MARKUP = re.compile(
    r"<\||\|>|</?\w+>|\[/?INST\]|```|\*\*|^\s*(?:#|[-*] )"
    r"|^\s*(?:question|article|answer|customer|user|assistant|system|agent|bot|policy)\s*:|\b(?:question|article|answer)\s*:"
    r"|\b(?:the|this|our) article\b|\b(?:I am|I'm|as) an? (?:AI|language model)",
    re.IGNORECASE | re.MULTILINE,
)
ADDRESS = re.compile(r"\S+@\S+|\bhttps?://\S+|\bwww\.\S+|\b[\w-]+\.(?:com|org|net|co|uk|io)\b", re.IGNORECASE)
NUMBER = re.compile(r"\d+(?:[.:]\d+)*")
_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
WORDS = {word: value for value, word in enumerate(_UNITS.split())} | {
    word: 10 * value for value, word in enumerate(_TENS.split(), start=2)
}
WORDS |= {"dozen": 12, "hundred": 100, "thousand": 1000}
NEGATION = re.compile(r"\b(?:no|not|never|none|nothing|without|cannot|\w+n't)\b", re.IGNORECASE)
DECLINING = "sorry afraid unable able help assist share give provide advise discuss answer this request that with can't"
"""Words that any refusal may use."""
LOOSE = {"0", "1"}
"""Numbers that stand in sentences which state none ("that one", "zero chance")."""
_COMMON = (
    "about after also because been before between cannot could does each from have here into just like more must need only other over "
    "please should some sorry such than thank thanks that their them then there these they this those through under until very want "
    "were what when where which while will with within would your yours"
)
STOP = frozenset(_COMMON.split())
STEM = 5


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

    Form first, then inventions, then the fact.  For a refusal only `narrow` counts: it must not give another one's reason.
    """
    form = _form(text, finish_reason, limits)
    if form:
        return form
    if invented_numbers(text, evidence.wide):
        return "number"
    if any(address.rstrip(".,") not in normalise(evidence.wide) for address in ADDRESS.findall(normalise(text))):
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
    if not limits.negations and NEGATION.search(normalise(text)) and not NEGATION.search(normalise(evidence.narrow)):
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


def numbers(text: str) -> set[str]:
    """Numbers in a text, written in digits or simple words, as digits: "£9.50", "thirty-five days" -> 9.5, 35."""
    text = normalise(text)
    found = {_trim(number) for number in NUMBER.findall(text)}
    words = re.findall(r"[a-z]+", text)
    below = 0  # value of the units word that the tens word before it has taken
    for first, second in pairwise([*words, ""]):
        value, unit = WORDS.get(first, -1), WORDS.get(second, 0)
        if value < 0 or below:
            below = 0
            continue
        below = unit if value in range(20, 100, 10) and unit in range(1, 10) else 0
        found.add(str(value + below))
    return found


def _trim(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number and ":" not in number else number.lstrip("0") or "0"


def invented_numbers(text: str, sources: str) -> set[str]:
    """Numbers of the answer that no source gives ("one" and "zero" in words pass)."""
    return numbers(text) - numbers(sources) - (LOOSE - set(NUMBER.findall(text)))


def support(text: str, sources: str) -> float:
    """Fraction of the answer's content words (four letters or more, cut to a stem) that the sources hold; 1 without any."""
    told = _stems(text)
    known = set(_stems(sources))
    return sum(stem in known for stem in told) / len(told) if told else 1.0


def _stems(text: str) -> list[str]:
    words = re.findall(r"[^\W\d_]{4,}", normalise(text))
    return [word[:STEM] for word in words if word not in STOP]
