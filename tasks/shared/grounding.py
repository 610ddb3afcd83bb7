"""What of an answer its sources do not hold: numbers, addresses, words.  Rules, no model: they see values and words, not claims."""

import re
from itertools import pairwise

from tasks.shared.chat import normalise

ADDRESS = re.compile(r"\S+@\S+|\bhttps?://\S+|\bwww\.\S+|\b[\w-]+\.(?:com|org|net|co|uk|io)\b", re.IGNORECASE)
NUMBER = re.compile(r"\d+(?:[.:]\d+)*")
_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
WORDS = {word: value for value, word in enumerate(_UNITS.split())} | {
    word: 10 * value for value, word in enumerate(_TENS.split(), start=2)
}
WORDS |= {"dozen": 12, "hundred": 100, "thousand": 1000}
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


def invented_addresses(text: str, sources: str) -> list[str]:
    """Mail and web addresses of the answer that no source gives."""
    known = normalise(sources)
    return [found for address in ADDRESS.findall(normalise(text)) if (found := address.rstrip(".,")) not in known]


def support(text: str, sources: str) -> float:
    """Fraction of the answer's content words (four letters or more, cut to a stem) that the sources hold; 1 without any."""
    return content_words(text, sources)[0]


def content_words(text: str, sources: str) -> tuple[float, list[str]]:
    """`support`, and the answer's content words that the sources do not hold."""
    known = {word[:STEM] for word in _content(sources)}
    told = _content(text)
    strange = [word for word in told if word[:STEM] not in known]
    return (1 - len(strange) / len(told) if told else 1.0), list(dict.fromkeys(strange))


def _content(text: str) -> list[str]:
    return [word for word in re.findall(r"[^\W\d_]{4,}", normalise(text)) if word not in STOP]
