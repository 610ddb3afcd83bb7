"""Quantities that an answer gives in place of the right one.  Rules for English units, no model."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks.shared.chat import contains, normalise
from tasks.shared.grounding import WORDS

TIME = {"minute": 1, "min": 1, "hour": 60, "day": 1440, "night": 1440, "week": 10080, "fortnight": 20160}
"""Minutes."""
MONTHS = {"month": 1, "year": 12}
MONEY = {"£": 1.0, "$": 1.0, "€": 1.0, "pound": 1.0, "dollar": 1.0, "euro": 1.0, "pence": 0.01}
OTHER = {"%": "percent", "percent": "percent", "cent": "percent", "am": "clock", "pm": "clock"} | {
    unit: unit for unit in ("gram", "kg", "kilo", "ml", "litre", "bar", "cm", "mm", "metre", "watt", "degree", "volt")
}


@dataclass(frozen=True)
class Quantity:
    """A number with its unit.  kind: what it can be compared with.  amount: in the kind's base unit.  words: as it stands."""

    kind: str
    amount: tuple[str, float]
    words: str


def quantities(text: str) -> list[Quantity]:
    """Numbers with a known unit right behind (or one word on: "6 working days") or a currency sign in front."""
    return [found for before, number, after in _measured(text) if (found := _quantity(before, number, after))]


def _measured(text: str) -> Iterator[tuple[str, str, list[str]]]:
    tokens = [*re.findall(r"[£$€%]|\d+(?:[.:]\d+)*|[a-z]+", normalise(text)), "", ""]
    skip = False
    for place, token in enumerate(tokens[:-2]):
        value, unit = WORDS.get(token), WORDS.get(tokens[place + 1], 0)
        joined = value in range(20, 100, 10) and unit in range(1, 10)
        if not skip and (value is not None or token[0].isdigit()):
            start = place + 1 + joined
            number = token if value is None else str(value + unit * joined)
            yield tokens[place - 1] if place else "", number, tokens[start : start + 2]
        skip = joined and not skip


def _quantity(before: str, number: str, after: Sequence[str]) -> Quantity | None:
    if ":" in number:
        return Quantity("clock", (number, 0.0), number)
    amount = float(".".join(number.split(".")[:2]))
    if before in ("£", "$", "€"):
        return Quantity("money", ("money", amount), before + number)
    for place, word in enumerate(after):
        if word[:1].isdigit():
            return None
        unit = word if word in MONEY or word in OTHER else word.removesuffix("s")
        words = " ".join([number, *after[: place + 1]])
        if unit in TIME:
            return Quantity("time", ("minutes", amount * TIME[unit]), words)
        if unit in MONTHS:
            return Quantity("time", ("months", amount * MONTHS[unit]), words)
        if unit in MONEY:
            return Quantity("money", ("money", amount * MONEY[unit]), words)
        if unit in OTHER:
            return Quantity(OTHER[unit], (OTHER[unit], amount), words)
    return None


def contradictions(text: str, accept: Sequence[Sequence[str]], known: str = "") -> list[str]:
    """Quantities that the answer gives in place of an accepted one: "14 days" where only "45 days" is right.

    accept: groups of strings, one of each must be stated (`chat.states_fact`); a group that is stated contradicts nothing.
    known: the conversation; a quantity of the customer's own may be said back.
    """
    allowed = {
        quantity.amount
        for part in (known, *(phrase for group in accept for phrase in group))
        for quantity in quantities(part)
    }
    missing = [group for group in accept if not any(contains(text, phrase) for phrase in group)]
    kinds = {quantity.kind for group in missing for phrase in group for quantity in quantities(phrase)}
    return [found.words for found in quantities(text) if found.kind in kinds and found.amount not in allowed]
