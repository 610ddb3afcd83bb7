"""Quantities that contradict the right one, found by rules for English units."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks.shared.text.fact_matching import contains, normalize
from tasks.shared.text.grounding import plain_clock, read_number

TIME = {"minute": 1, "min": 1, "hour": 60, "day": 1440, "night": 1440, "week": 10080, "fortnight": 20160}
"""Minutes."""
MONTHS = {"month": 1, "year": 12}
MONEY = {"£": 1.0, "$": 1.0, "€": 1.0, "pound": 1.0, "dollar": 1.0, "euro": 1.0, "pence": 0.01, "cent": 0.01}
HALF_DAY = 720
"""Minutes."""
OTHER = {"%": "percent", "percent": "percent"} | {
    unit: unit for unit in ("gram", "kg", "kilo", "ml", "litre", "bar", "cm", "mm", "metre", "watt", "degree", "volt")
}


@dataclass(frozen=True)
class Quantity:
    """A number with its unit.

    kind: dimension; only quantities of the same kind are compared.
    amount: base unit and value (for times of day, minutes since midnight).
    words: as written.
    either: True for a time that may be am or pm ("5:30"); `amount` is then the earlier one.
    """

    kind: str
    amount: tuple[str, float]
    words: str
    either: bool = False

    @property
    def amounts(self) -> set[tuple[str, float]]:
        """All amounts that it may mean."""
        unit, value = self.amount
        return {self.amount, (unit, value + HALF_DAY)} if self.either else {self.amount}


def quantities(text: str) -> list[Quantity]:
    """Find numbers with a known unit ("6 days", "6 working days") or a currency sign."""
    return [found for before, number, after in _measured(text) if (found := _quantity(before, number, after))]


def _measured(text: str) -> Iterator[tuple[str, str, list[str]]]:
    tokens = [*re.findall(r"[£$€%]|\d+(?:[.:]\d+)*|[a-z]+", plain_clock(normalize(text))), "", ""]
    place = 0
    while place < len(tokens) - 2:
        value, length = read_number(tokens, place)
        if length or tokens[place][0].isdigit():
            start = place + (length or 1)
            number = str(value) if length else tokens[place]
            yield tokens[place - 1] if place else "", number, [*tokens[start : start + 2], "", ""][:2]
        place += length or 1


def _clock(number: str, after: str) -> Quantity | None:
    """Parse a time of day: "17:30", "5 pm", "5:30 pm"; None for impossible hours or minutes."""
    hour, minute = (int(part) for part in f"{number}:00".split(":")[:2])
    half = after if after in ("am", "pm") else ""
    if hour > (12 if half else 24) or minute > 59:
        return None
    minutes = float((hour % 12 + 12 * (half == "pm") if half else hour % 24) * 60 + minute)
    either = not half and 1 <= hour <= 12 and number[0] != "0"
    return Quantity("clock", ("clock", minutes % HALF_DAY if either else minutes), f"{number} {half}".strip(), either)


def _quantity(before: str, number: str, after: Sequence[str]) -> Quantity | None:
    if ":" in number or (after[0] in ("am", "pm") and number.isdigit()):
        return _clock(number, after[0])
    amount = float(".".join(number.split(".")[:2]))
    if before in ("£", "$", "€"):
        return Quantity("money", ("money", amount), before + number)
    if after[0] == "per":  # "20 per cent", but "5 per day" are no days
        return Quantity("percent", ("percent", amount), f"{number} per cent") if after[1] == "cent" else None
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
    """Find quantities in place of an accepted one: "14 days" where only "45 days" is right.

    accept: groups of strings, one of each must be stated (`chat.states_fact`); a group that is stated cannot be contradicted.
    known: the conversation, whose quantities the answer may repeat.
    """
    allowed = {
        amount
        for part in (known, *(phrase for group in accept for phrase in group))
        for quantity in quantities(part)
        for amount in quantity.amounts
    }
    missing = [group for group in accept if not any(contains(text, phrase) for phrase in group)]
    kinds = {quantity.kind for group in missing for phrase in group for quantity in quantities(phrase)}
    return [found.words for found in quantities(text) if found.kind in kinds and not found.amounts & allowed]
