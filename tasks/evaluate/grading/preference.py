"""Pairwise preference by an LLM judge: prompts in both orders, and parsing of its verdicts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tasks.shared.formats.articles import question_of
from tasks.shared.formats.rows import Row
from tasks.shared.formats.scores import ItemScore
from tasks.shared.text.fact_matching import normalize
from tasks.shared.text.transcript import transcript, turn_text

Opinion = Literal["rival", "baseline", "tie", "unreadable"]
INSTRUCTIONS = (
    "You compare two answers to the same request. {criteria} The order of the answers means nothing. "
    "Say why in at most two sentences, then end with one line: Verdict: A, Verdict: B, or Verdict: tie."
)
CRITERIA = (
    "The better answer does what was asked, agrees with the reference answer if there is one, adds nothing false, and is clear and no "
    "longer than needed."
)
"""Criteria for tasks that state none."""
VERDICT = re.compile(r"\bverdict\W*(?:is\W+)?(?:answer\s+|a\s+(?=tie\b))?(a|b|tie)\b", re.IGNORECASE)
BARE_VERDICT = re.compile(r"^\W*(?:answer\s+)?(a|b|tie)\W*$", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """One item's answers from the baseline and from a rival model.

    request: what was asked, with the turns before it.  criteria: of the item's task; empty for general ones.
    """

    item: ItemScore
    baseline: str
    rival: str
    request: str
    criteria: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Item and rival answer: rivals with the same answer share the judge's opinions."""
        return self.item.id, self.item.answers[self.rival]

    @property
    def differs(self) -> bool:
        """True if the two answers differ after normalization."""
        answers = self.item.answers
        return normalize(answers[self.baseline]) != normalize(answers[self.rival])

    def messages(self, instructions: str, swapped: bool) -> list[dict[str, str]]:
        """Return the judge's prompt.

        swapped: the rival's answer is A.  instructions: empty for general ones with the criteria of the task.
        """
        first, second = (self.rival, self.baseline) if swapped else (self.baseline, self.rival)
        item = self.item
        parts = [
            f"Question:\n{self.request}", *([f"Reference answer:\n{item.wanted}"] if item.wanted else []),
            f"Answer A:\n{item.answers[first]}", f"Answer B:\n{item.answers[second]}",
        ]  # fmt: skip
        system = instructions or INSTRUCTIONS.format(criteria=self.criteria or CRITERIA)
        return [{"role": "system", "content": system}, {"role": "user", "content": "\n\n".join(parts)}]


def request_of(row: Row) -> str:
    """Return the request of a row: its question, or the conversation if there are more turns."""
    turns = [
        turn.model_copy(update={"content": question_of(turn.content)})
        for turn in row.before
        if turn.role not in ("system", "developer")
    ]
    return transcript(turns) if len(turns) > 1 else "".join(map(turn_text, turns))


def read_opinion(text: str, swapped: bool) -> Opinion:
    """Parse the judge's preference from its reply.

    Takes the last "Verdict: ..." line, or a reply that is only A, B or tie.  swapped: the rival's answer was A.
    """
    found = VERDICT.findall(text) or BARE_VERDICT.findall(text.strip())
    if not found:
        return "unreadable"
    letter = found[-1].lower()
    if letter == "tie":
        return "tie"
    return "rival" if (letter == "a") == swapped else "baseline"


@dataclass(frozen=True)
class Judgment:
    """Opinions on one pair, baseline first and rival first; empty for identical answers."""

    opinions: tuple[Opinion, ...] = ()

    @property
    def value(self) -> float:
        """1 if the rival wins in both orders, 0 if the baseline does, else 0.5."""
        if set(self.opinions) == {"rival"}:
            return 1.0
        return 0.0 if set(self.opinions) == {"baseline"} else 0.5


def agreement(judgments: Sequence[Judgment]) -> float | None:
    """Return the share of readable pairs with the same opinion in both orders; None without any."""
    read = [found.opinions for found in judgments if found.opinions and "unreadable" not in found.opinions]
    return sum(first == second for first, second in read) / len(read) if read else None


def first_position_share(judgments: Sequence[Judgment]) -> float | None:
    """Return the share of non-tie opinions that prefer the first answer; None without any.

    0.5 without position bias (Zheng et al. 2023, arXiv 2306.05685, section 3.3).
    """
    sides: tuple[Opinion, Opinion] = ("baseline", "rival")  # the first answer, by order
    first = [
        opinion == side
        for found in judgments
        for opinion, side in zip(found.opinions, sides, strict=False)
        if opinion in sides
    ]
    return sum(first) / len(first) if first else None
