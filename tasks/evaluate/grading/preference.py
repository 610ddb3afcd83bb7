"""Which of two answers a judge prefers: what it is asked, in both orders, and how its words are read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tasks.shared.formats.scores import ItemScore

Opinion = Literal["rival", "baseline", "tie", "unreadable"]
INSTRUCTIONS = (
    "You compare two answers of a support bot to the same customer question. The better answer is correct by the reference answer, "
    "answers what was asked, adds nothing false, and is short and polite. The order of the answers means nothing. "
    "Say why in at most two sentences, then end with one line: Verdict: A, Verdict: B, or Verdict: tie."
)
VERDICT = re.compile(r"\bverdict\W*(?:is\W+)?(?:answer\s+|a\s+(?=tie\b))?(a|b|tie)\b", re.IGNORECASE)
BARE = re.compile(r"^\W*(?:answer\s+)?(a|b|tie)\W*$", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """One item's answers of the baseline and of a rival."""

    item: ItemScore
    baseline: str
    rival: str

    @property
    def key(self) -> tuple[str, str]:
        """What the judge is asked: rivals with the same answer share its opinions."""
        return self.item.id, self.item.answers[self.rival]

    def messages(self, instructions: str, swapped: bool) -> list[dict[str, str]]:
        """The chat that asks the judge.  swapped: the rival's answer is A."""
        first, second = (self.rival, self.baseline) if swapped else (self.baseline, self.rival)
        item = self.item
        parts = [
            f"Question:\n{item.question}", f"Reference answer:\n{item.wanted}",
            f"Answer A:\n{item.answers[first]}", f"Answer B:\n{item.answers[second]}",
        ]  # fmt: skip
        return [{"role": "system", "content": instructions}, {"role": "user", "content": "\n\n".join(parts)}]


def read_opinion(text: str, swapped: bool) -> Opinion:
    """Whom the judge prefers: its last "Verdict: ..." line, or a reply that is nothing but A, B or tie."""
    found = VERDICT.findall(text) or BARE.findall(text.strip())
    if not found:
        return "unreadable"
    letter = found[-1].lower()
    if letter == "tie":
        return "tie"
    return "rival" if (letter == "a") == swapped else "baseline"


@dataclass(frozen=True)
class Judgment:
    """Both opinions on one pair: with the baseline's answer first, and with the rival's.  Empty for answers that are the same."""

    opinions: tuple[Opinion, ...] = ()

    @property
    def value(self) -> float:
        """1 if the rival wins in both orders, 0 if the baseline does, else 0.5."""
        if set(self.opinions) == {"rival"}:
            return 1.0
        return 0.0 if set(self.opinions) == {"baseline"} else 0.5


def agreement(judgments: Sequence[Judgment]) -> float | None:
    """Share of the pairs that were asked and could be read in which both orders gave the same opinion; None without any."""
    read = [found.opinions for found in judgments if found.opinions and "unreadable" not in found.opinions]
    return sum(first == second for first, second in read) / len(read) if read else None


def first_share(judgments: Sequence[Judgment]) -> float | None:
    """Share of the opinions for one side that went to the answer that stood first: 0.5 without position bias; None without any."""
    sides: tuple[Opinion, Opinion] = ("baseline", "rival")  # who stands first, by order
    first = [
        opinion == side
        for found in judgments
        for opinion, side in zip(found.opinions, sides, strict=False)
        if opinion in sides
    ]
    return sum(first) / len(first) if first else None
