"""Rule for the end of asking: every measure that decides is decided, or one is lost."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal, Protocol, runtime_checkable

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.evaluate.verdict import courses
from tasks.evaluate.verdict.adaptive import Test, assess_pairs
from tasks.evaluate.verdict.pairs import pair_items
from tasks.shared.errors import ConfigError
from tasks.shared.formats.scores import BALANCED, ItemScore, Measure, current_name

Share = Annotated[float, Field(gt=0, lt=1)]
POWER = 0.8
"""Probability with which a forecast expects an equal candidate to pass."""
Slice = tuple[str, str, str]
"""Measure, tag and value."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Rounds:
    """Ask the test rows in rounds, and stop asking a model once an adaptive verdict is certain.

    margins, alpha, discordance and familywise are those of the verdict; the plan refuses any difference.
    """

    margins: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Allowed loss by measure, as in the adaptive verdict; empty asks every model all rows at once."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Error probability of the verdict."""
    discordance: Share = 0.06
    """Share of items that the verdict's bets expect to flip."""
    familywise: bool | Literal["fdr"] = False
    """The verdict's rule for several candidates; with one, more evidence is collected before a candidate may stop."""
    size: Annotated[int, Field(ge=1)] = 32
    """Rows of the first two rounds; each later pair of rounds is twice as large, since every round loads the model again."""
    slice_tags: tuple[str, ...] = ("task", "kind", "language")
    """Tags whose slices are protected: no model stops with too few items of one, unless a measure is lost."""
    slice_items: Annotated[int, Field(ge=0)] = 10
    """Items per protected slice and measure, as far as the test split has them."""
    after: str = ""
    """Folder of earlier scores of a smaller test split (scores.json): its rows come first, in their order.  Empty starts anew."""

    def problems(
        self, where: str, step: str, verdict: Mapping[str, object], mode: str, measured: frozenset[str]
    ) -> Iterator[ConfigError]:
        """Yield differences from the verdict that reads the step's scores.

        where: of the verdict.  verdict: its margins (current names), alpha, discordance and familywise.  measured: what the step can measure.
        """
        if not self.margins:
            return
        if mode != "adaptive":
            wanted, fix = (
                "adaptive: the fixed test needs all items of every model",
                f"{where}.mode=adaptive, or steps.{step}.rounds.margins={{}}",
            )
            yield ConfigError(f"{where}.mode", f"{mode}, but step {step} asks in rounds", wanted, fix)
        own = {current_name(name): margin for name, margin in self.margins.items() if current_name(name) in measured}
        if self.after and BALANCED in own:
            got, wanted = f"{BALANCED} decides", "a measure whose weights do not depend on the rest of the test split"
            yield ConfigError(
                f"steps.{step}.rounds.after", got, wanted, "margins for label instead, or rounds.after=''"
            )
        relative = verdict["relative_margins"]
        if isinstance(relative, dict) and (named := sorted(measured.intersection(relative))):
            fix = f"a margin in {where}.margins, or steps.{step}.rounds.margins={{}}"
            yield ConfigError(
                f"{where}.relative_margins",
                f"{', '.join(named)}, while step {step} asks in rounds",
                "absolute margins",
                fix,
            )
        theirs = verdict["margins"]
        wanted_margins = (
            {name: margin for name, margin in theirs.items() if name in measured} if isinstance(theirs, dict) else {}
        )
        pairs = {
            "margins": (own, wanted_margins),
            **{name: (getattr(self, name), verdict[name]) for name in ("alpha", "discordance", "familywise")},
        }
        for name, (got, wanted_value) in pairs.items():
            if got != wanted_value:
                fix = f'steps.{step}.rounds.{name}: "${{{where}.{name}}}"'
                yield ConfigError(f"steps.{step}.rounds.{name}", str(got), f"that of {where}: {wanted_value}", fix)

    def likely_rows(self, rows: int) -> tuple[int, int]:
        """Return how many of these rows an equal candidate takes to pass, and how many rounds.

        With 80 % probability.  All rows in one round without margins below 1.  Rows that lack a measure, and slices, may take more.
        """
        rules = [courses.Rules(margin, self.discordance, self.alpha) for margin in self.margins.values() if margin < 1]
        if not rules:
            return rows, 1
        needed = max(courses.items_needed(one, POWER) for one in rules)
        ends = list(round_ends(rows, self.size, [""] * rows))
        count = next((count for count, end in enumerate(ends, 1) if end >= needed), len(ends))
        return (ends[count - 1] if ends else 0), max(1, count)

    def threshold(self, candidates: int) -> float:
        """Error probability at which one of several candidates is certain."""
        return self.alpha / max(1, candidates) if self.familywise else self.alpha


@runtime_checkable
class AsksInRounds(Protocol):
    """A measuring step that may ask in rounds."""

    rounds: Rounds

    def measurable(self) -> frozenset[str]:
        """Return the names of all measures that the step can take."""
        ...


def row_order(units: Mapping[str, str], seed: int) -> list[str]:
    """Return row ids in random order, the rows of one unit together.

    units: group of dependent rows by row id; empty if a row stands alone.
    By the hash of seed and unit, so that neither the file's order nor slices or difficulty matter.
    """

    def place(row: str) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed}:{units[row] or row}".encode()).digest(), row

    return sorted(units, key=place)


def round_ends(rows: int, size: int, units: Sequence[str]) -> Iterator[int]:
    """Yield the number of rows after each round; no round ends within a unit.

    units: of every row, in order.
    """
    end, count = 0, 0
    while end < rows:
        end, count = min(rows, end + size * 2 ** (count // 2)), count + 1
        while end < rows and units[end] and units[end] == units[end - 1]:
            end += 1
        yield end


def settled(
    items: Sequence[ItemScore], measures: Mapping[str, Measure], available: Mapping[Slice, int],
    largest: Mapping[str, float], baseline: str, candidate: str, rounds: Rounds, alpha: float,
) -> bool:  # fmt: skip
    """Return True if more items cannot change the verdict on this candidate.

    items: so far, in order.  available: items of the whole split by measure, tag and value.  largest: weight of its heaviest group by
    measure.  alpha: of one candidate.
    A measure of unknown range is never decided early.
    """
    deciding = {current_name(name): margin for name, margin in rounds.margins.items() if current_name(name) in measures}
    answers = []
    for name, margin in deciding.items():
        own = [item for item in items if item.measure == name]
        pairs = pair_items(measures[name], own, baseline, candidate, largest=largest[name])
        found = assess_pairs(pairs, Test(alpha, margin, rounds.discordance)) if pairs.baseline else None
        answer = found.answer if found else "unknown"
        if found and rounds.familywise == "fdr" and found.wealth.now < found.wealth.needed:
            answer = "unknown" if answer == "yes" else answer  # e-BH counts the evidence as it stands
        answers.append(answer)
    if "no" in answers:
        return True
    return bool(answers) and "unknown" not in answers and not thin_slices(items, deciding, available, rounds)


def thin_slices(
    own: Sequence[ItemScore], measures: Mapping[str, object], available: Mapping[Slice, int], rounds: Rounds
) -> list[Slice]:  # fmt: skip
    """Return the protected slices (measure, tag, value) with too few items so far."""
    have = count_slices(((item.measure, item.tags) for item in own), rounds.slice_tags)
    return [
        key
        for key, total in available.items()
        if key[0] in measures and have.get(key, 0) < min(total, rounds.slice_items)
    ]


def heaviest_groups(items: Iterable[tuple[str, str, float]]) -> dict[str, float]:
    """Return the weight of the heaviest group of dependent items by measure.

    items: measure, group and weight of each.
    """
    totals: defaultdict[tuple[str, str], float] = defaultdict(float)
    for measure, group, weight in items:
        totals[measure, group] += weight
    found: dict[str, float] = {}
    for (measure, _), total in totals.items():
        found[measure] = max(found.get(measure, 0.0), total)
    return found


def count_slices(items: Iterable[tuple[str, Mapping[str, str]]], tags: Sequence[str]) -> dict[Slice, int]:
    """Return the number of items by slice.  items: measure and tags of each."""
    return Counter((measure, tag, own[tag]) for measure, own in items for tag in tags if tag in own)
