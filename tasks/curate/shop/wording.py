"""Typing errors, and the greetings and remarks that people put around a question."""

import re
from random import Random

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEXT_KEY = {key: "".join(row[max(0, i - 1) : i] + row[i + 1 : i + 2]) for row in _ROWS for i, key in enumerate(row)}

TRAIN_OPENINGS = (
    "Hi!",
    "Hello there.",
    "Good morning.",
    "Hey!",
    "Hi, quick question.",
    "Sorry to bother you.",
    "Hello, me again.",
    "Hope you're having a nice day.",
    "I couldn't find this on your site.",
    "Please help me out here.",
    "I'm in a bit of a hurry.",
    "This is urgent!",
    "I've been a customer for years.",
    "My partner asked me to write to you.",
    "I'm new to all this, so bear with me.",
    "Okay, so here's the thing.",
    "I'm getting rather annoyed.",
    "I've read your help pages twice and I'm none the wiser.",
    "Not sure I'm in the right place, but here goes.",
    "I'm writing from my phone, forgive the spelling.",
    "To the support team:",
    "Hello, I'm asking on behalf of my mother.",
)
TRAIN_CLOSINGS = (
    "Thanks!",
    "Thank you in advance.",
    "Please answer soon.",
    "Any help is welcome.",
    "Cheers, Tom",
    "Please advise.",
    "I'd be grateful for a short answer.",
    "Sorry if this has been asked before.",
    "Best wishes, Ana",
    "It's driving me mad.",
)
TEST_OPENINGS = (
    "Good evening!",
    "Hey team.",
    "Greetings from a rainy Sunday.",
    "Apologies if that's a silly one.",
    "Can't wait any longer with this:",
    "Hiya.",
    "My colleague said you could sort me out.",
    "I was on hold for ages, so I'm trying here instead.",
    "Longtime fan of your coffee here.",
    "So, there's something on my mind.",
    "Right, this needs fixing today.",
    "Pardon my English, I'm still learning.",
)
TEST_CLOSINGS = (
    "Many thanks, Priya",
    "Much appreciated.",
    "Let me know quickly, would you?",
    "Have a lovely weekend!",
    "I'm at my wits' end.",
    "A brief reply will do.",
    "Ta!",
    "Looking forward to hearing from you.",
)


def _swap(word: str, i: int, rng: Random) -> str:
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def _drop(word: str, i: int, rng: Random) -> str:
    return word[:i] + word[i + 1 :]


def _double(word: str, i: int, rng: Random) -> str:
    return word[: i + 1] + word[i] + word[i + 1 :]


def _neighbor_key(word: str, i: int, rng: Random) -> str:
    keys = _NEXT_KEY.get(word[i].lower(), "")
    return word[:i] + rng.choice(keys) + word[i + 1 :] if keys else word


def _mistype_word(text: str, rng: Random) -> str:
    """Return the text with one typing error inside a word of four letters or more.

    First letters and numbers stay correct, as in real typing.
    """
    words = list(re.finditer(r"[A-Za-z]{4,}", text))
    if not words:
        return text
    match = rng.choice(words)
    word = match.group()
    place = rng.randrange(1, len(word) - 1)
    return (
        text[: match.start()]
        + rng.choice((_swap, _drop, _double, _neighbor_key))(word, place, rng)
        + text[match.end() :]
    )


def mistype(text: str, rng: Random) -> str:
    """Return the text with one or two typing errors.

    An error swaps, drops, doubles or replaces a letter (by one of a neighboring key), drops an apostrophe, or loses the capitals.
    It changes the length by at most one.  A text without a word of four letters may stay the same.
    """
    for _ in range(rng.choice((1, 1, 2))):
        kind = rng.random()
        if kind < 0.15 and "'" in text:
            text = text.replace("'", "", 1)
        elif kind < 0.3 and text != text.lower():
            text = text.lower()
        else:
            text = _mistype_word(text, rng)
    return text


def dress(text: str, openings: tuple[str, ...], closings: tuple[str, ...], rng: Random) -> str:
    """Return the text with an opening, a closing, or both."""
    place = rng.choice(("before", "before", "after", "both"))
    if place != "before":
        end = "" if text[-1] in ".?!" else "."
        text = f"{text}{end} {rng.choice(closings)}"
    if place != "after":
        text = f"{rng.choice(openings)} {text}"
    return text
