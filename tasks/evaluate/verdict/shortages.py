"""Margins that a plan's test items cannot decide, found before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.evaluate.verdict import courses
from tasks.evaluate.verdict.power import items_needed, minimum_detectable
from tasks.shared.errors import ConfigError
from tasks.shared.formats.verdict import Mode
from tasks.shared.items import Decidable, ItemFindings, Items


@dataclass(frozen=True)
class Planned:
    """Assumptions of the plan.

    discordance: share of items expected to flip between equally good models.  relative: measures whose margin is a share of the
    baseline's value, which is not known yet.  mode: of the verdict.
    """

    discordance: float
    alpha: float
    power: float
    relative: frozenset[str] = frozenset()
    mode: Mode = "fixed"

    def smallest(self, count: int) -> float:
        """Smallest margin that an equally good candidate passes with probability `power`."""
        if self.mode == "adaptive":
            return courses.smallest_margin(count, self.discordance, self.discordance, self.alpha, self.power)
        return minimum_detectable(count, self.discordance, self.alpha, self.power)

    def needed(self, margin: float) -> int:
        """Number of items with which an equal candidate passes this margin at the planned power."""
        if self.mode == "adaptive":
            return courses.items_needed(courses.Rules(margin, self.discordance, self.alpha), self.power)
        return items_needed(margin, self.discordance, self.alpha, self.power)


def shortages(
    where: str, margins: Mapping[str, float], items: Mapping[str, Items], complete: bool, planned: Planned
) -> ItemFindings:
    """Return, for every margin, its items and the smallest margin that they can decide.

    A margin without items is an error; too few are a warning that says how many to use.
    complete: no measure is missing from `items`, so that a margin on another one can never be decided.
    """
    found = ItemFindings()
    short: dict[tuple[Items, float], list[str]] = {}
    for name, margin in margins.items():
        own = items.get(name)
        if own is None or not own.count:
            if own is not None or complete:
                found.errors.append(_nothing(where, name, items))
            continue
        relative = name in planned.relative
        smallest = None if relative or not own.binary else planned.smallest(own.independent)
        found.decidable.append(Decidable(where, name, own, margin, relative, smallest))
        if smallest is not None and smallest > margin:
            short.setdefault((own, margin), []).append(name)
    found.warnings.extend(_too_few(where, names, *key, planned) for key, names in short.items())
    return found


def _too_few(where: str, names: list[str], items: Items, margin: float, planned: Planned) -> str:
    needed = planned.needed(margin)
    more = f"about {needed} test items"
    if items.groups is not None:
        more = f"about {needed} groups of test items, of one item each if you can"
    return (
        f"{where}: {' and '.join(names)}: {items.in_words('test items')} are too few for a margin of {100 * margin:.3g} points: even a candidate as "
        f"good as the baseline passes with less than {planned.power:.0%} probability. Use {more}, or a larger margin"
    )


def _nothing(where: str, name: str, items: Mapping[str, Items]) -> ConfigError:
    has = ", ".join(known for known, own in items.items() if own.count)
    return ConfigError(
        f"{where}.margins.{name}", "no test item has this measure, so it can decide nothing", f"a measure with test items: {has or 'none'}",
        f"remove it (~{where}.margins.{name}), or add test rows that have it",
    )  # fmt: skip
