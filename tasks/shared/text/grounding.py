"""Rules that find numbers, addresses and words of an answer that its sources lack.

They use no model, so they compare values and words, not claims.
"""

import re
from collections.abc import Sequence

from tasks.shared.text.fact_matching import normalize

ADDRESS = re.compile(
    r"[\w.+-]+@[\w.-]+|\b(?:https?://|www\.)[^\s<>()\[\]\"'*`]+|\b[\w-]+\.(?:com|org|net|co|uk|io)\b", re.IGNORECASE
)
NUMBER = re.compile(r"\d+(?:[.:]\d+)*")
MARK = re.compile(r"(?:^|(?<=[\n.!?:;]))[^\S\n]*(?:\*\*)?(\d{1,2})[.)](?=\s)")
"""A number that may be a list marker: at the start of a line or sentence."""
EDGES = ".,;:!?_-"
"""Characters around an address that are not part of it."""
_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
WORDS = {word: value for value, word in enumerate(_UNITS.split())} | {
    word: 10 * value for value, word in enumerate(_TENS.split(), start=2)
}
SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000}
DECLINING = "sorry afraid unable able help assist share give provide advise discuss answer this request that with can't"
"""Words that every refusal may contain."""
LOOSE = {"0", "1"}
"""Numbers whose words occur in sentences that state no number ("that one", "zero chance")."""
_COMMON = (
    "about after also because been before between cannot could does each from have here into just like more must need only other over "
    "please should some sorry such than thank thanks that their them then there these they this those through under until very want "
    "were what when where which while will with within would your yours"
)
STOP = frozenset(_COMMON.split())
STEM = 5


def numbers(text: str) -> set[str]:
    """Find numbers in digits or simple words: "£9.50", "thirty-five days" -> "9.5", "35"."""
    text = plain_clock(normalize(text))
    found = {_trim(number) for number in NUMBER.findall(text)}
    words = re.findall(r"[a-z]+", text)
    place = 0
    while place < len(words):
        value, length = read_number(words, place)
        found |= {str(value)} if length else set()
        place += length or 1
    return found


def read_number(words: Sequence[str], start: int) -> tuple[int, int]:
    """Value and length, in words, of the number that begins at `start`; (0, 0) if there is none.

    "two hundred and five" is (205, 4); "a dozen" is (12, 1), from its second word.
    """
    value, place = _below_hundred(words, start)
    if place == start:
        if _word(words, start) not in SCALES:
            return 0, 0
        value = 1
    for scale in ("dozen", "hundred", "thousand"):
        if _word(words, place) == scale:
            value, place = value * SCALES[scale], place + 1
            if scale != "dozen":
                more, place = _rest(words, place, scale)
                value += more
    return value, place - start


def _below_hundred(words: Sequence[str], start: int) -> tuple[int, int]:
    """Value of "seven", "thirty" or "thirty five", and the position after it."""
    value = WORDS.get(_word(words, start), -1)
    if value < 0:
        return 0, start
    unit = WORDS.get(_word(words, start + 1), 0)
    return (value + unit, start + 2) if value >= 20 and unit in range(1, 10) else (value, start + 1)


def _rest(words: Sequence[str], start: int, scale: str) -> tuple[int, int]:
    """Value of the rest of a number after "hundred" or "thousand", and the position after it.

    (0, start) if there is no rest.
    """
    first = start + (_word(words, start) == "and")
    value, place = _below_hundred(words, first)
    if scale == "thousand" and value and _word(words, place) == "hundred":
        more, place = _rest(words, place + 1, "hundred")
        return 100 * value + more, place
    return (value, place) if value and _word(words, place) not in SCALES else (0, start)


def _word(words: Sequence[str], place: int) -> str:
    return words[place] if place < len(words) else ""


def plain_clock(text: str) -> str:
    """Normalize times of day: "9.30 a.m." -> "9:30 am".  text: result of `normalize`."""
    text = re.sub(r"(?<=\d)( ?)([ap])\. ?m\b\.?", r"\1\2m", text)
    return re.sub(r"\b(\d{1,2})\.(\d\d)(?= ?[ap]m\b)", r"\1:\2", text)


def _trim(number: str) -> str:
    number = number.removesuffix(":00")
    return number.rstrip("0").rstrip(".") if "." in number and ":" not in number else number.lstrip("0") or "0"


def invented_numbers(text: str, sources: str) -> set[str]:
    """Find numbers of the answer that no source contains.

    "one" and "zero" in words and list markers are ignored.
    """
    text = without_marks(text)
    return numbers(text) - numbers(sources) - (LOOSE - set(NUMBER.findall(text)))


def without_marks(text: str) -> str:
    """Remove list markers: 1, 2, 3 and so on, each at the start of a line or sentence."""
    due = 1

    def drop(found: re.Match[str]) -> str:
        nonlocal due
        if int(found[1]) not in (1, due):
            return found[0]
        due = int(found[1]) + 1
        return " "

    return MARK.sub(drop, text)


def invented_addresses(text: str, sources: str) -> list[str]:
    """Find mail and web addresses of the answer that no source contains."""
    known = normalize(sources)
    return [found for address in ADDRESS.findall(normalize(text)) if (found := address.strip(EDGES)) not in known]


def support(text: str, sources: str) -> float:
    """Fraction of the answer's content words that the sources contain; 1 if it has none.

    Content words have at least four letters; they are compared by their stems.
    """
    return content_words(text, sources)[0]


def content_words(text: str, sources: str) -> tuple[float, list[str]]:
    """`support`, and the answer's content words that the sources lack."""
    known = {word[:STEM] for word in _content(sources)}
    words = _content(text)
    strange = [word for word in words if word[:STEM] not in known]
    return (1 - len(strange) / len(words) if words else 1.0), list(dict.fromkeys(strange))


def _content(text: str) -> list[str]:
    return [word for word in re.findall(r"[^\W\d_]{4,}", normalize(text)) if word not in STOP]
