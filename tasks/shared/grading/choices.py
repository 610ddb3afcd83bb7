"""Choice targets: the option that an answer names by letter, number or text."""

import re
from collections.abc import Sequence

from tasks.shared.grading.labels import plain_label
from tasks.shared.grading.numbers import boxed_text
from tasks.shared.text.fact_matching import contains, normalize

NAME = r"[\(\[]?([A-Za-z]|\d{1,2})[\)\]]?"
WHOLE = re.compile(rf"\W*(?:option|choice|answer)?\W*{NAME}\W*", re.IGNORECASE)
LEADING = re.compile(r"[\W_]*(?:[\(\[]([A-Za-z]|\d{1,2})[\)\]]|([A-Z]|\d{1,2})[).:])(?=\W)")
STATED = re.compile(
    r"(?i:\b(?:answer|option|choice)\b\W*?(?:is\b|=)?[\s:*]*(?:option\s+|choice\s+)?)"
    r"(?:[\(\[]([A-Za-z]|\d{1,2})[\)\]]|([A-Z])(?!\w)|([a-z]|\d{1,2})(?=\W*(?:$|[.\n])))"
)
"""A small letter or a number names an option only at the end of a sentence: not in "the answer is a cat", "... is 3 days"."""


def chosen_option(text: str, options: Sequence[str]) -> int | None:
    r"""Return the index of the option that an answer names; None if it names none, or several.

    Looked for in this order: the whole answer (or its `\boxed{}`) is an option's text, or its letter or number (counted from 1);
    "B) ..." at the beginning; "the answer is B"; a single option whose text occurs in the answer.
    """
    boxed = boxed_text(text)
    for part in (boxed, text) if boxed else (text,):
        equal = [index for index, option in enumerate(options) if plain_label(part) == plain_label(option)]
        if len(equal) == 1:
            return equal[0]
        if (whole := WHOLE.fullmatch(part)) and (index := _index(whole[1], len(options))) is not None:
            return index
    if (leading := LEADING.match(text)) and (index := _index(leading[1] or leading[2], len(options))) is not None:
        return index
    names = ["".join(groups) for groups in STATED.findall(text)]
    stated = [index for name in names if (index := _index(name, len(options))) is not None]
    return stated[-1] if stated else _contained(text, options)


def _index(name: str, count: int) -> int | None:
    index = int(name) - 1 if name.isdigit() else ord(name.upper()) - ord("A")
    return index if 0 <= index < count else None


def _contained(text: str, options: Sequence[str]) -> int | None:
    """Index of the one option that occurs in the text.

    Options that are part of another one that occurs are passed over.
    """
    found = [index for index, option in enumerate(options) if contains(text, option)]
    own = [
        index
        for index in found
        if not any(
            other != index
            and normalize(options[index]) != normalize(options[other])
            and contains(options[other], options[index])
            for other in found
        )
    ]
    return own[0] if len(own) == 1 else None
