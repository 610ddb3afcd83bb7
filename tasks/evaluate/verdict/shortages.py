"""Margins that a plan's test items cannot decide, found before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.evaluate.verdict.power import items_needed, minimum_detectable
from tasks.shared.errors import ConfigError
from tasks.shared.items import ItemFindings, Items


@dataclass(frozen=True)
class Planned:
    """Assumptions of the plan.

    discordance: share of items expected to flip between equally good models.  relative: measures whose margin is a share of the
    baseline's value, which is not known yet.
    """

    discordance: float
    alpha: float
    power: float
    relative: frozenset[str] = frozenset()


def shortages(
    where: str, margins: Mapping[str, float], items: Mapping[str, Items], complete: bool, planned: Planned
) -> ItemFindings:
    """Return, for every margin, its items and the smallest loss that they can show.

    No items is an error; too few a warning that names how many would do.
    complete: no measure is missing from `items`, so that a margin on another one can never be decided.
    """
    found = ItemFindings()
    for name, margin in margins.items():
        own = items.get(name)
        if own is None or not own.count:
            if own is not None or complete:
                found.errors.append(_nothing(where, name, items))
            continue
        count = f"{'' if own.exact else 'at most '}{own.count} items"
        if not own.binary or name in planned.relative:
            found.lines.append(f"{where}: {name}: {count}, margin {margin:.3g}")
            continue
        smallest = minimum_detectable(own.count, planned.discordance, planned.alpha, planned.power)
        found.lines.append(f"{where}: {name}: {count}, margin {margin:.3g}; they can decide a margin of {smallest:.3g}")
        if smallest > margin:
            needed = items_needed(margin, planned.discordance, planned.alpha, planned.power)
            found.warnings.append(
                f"{where}: {name}: {count} are too few for a margin of {margin:.3g}: if {planned.discordance:.0%} of them flip, an equal "
                f"candidate passes with {planned.power:.0%} probability only at {smallest:.3g} or more; about {needed} items would do"
            )
    return found


def _nothing(where: str, name: str, items: Mapping[str, Items]) -> ConfigError:
    has = ", ".join(known for known, own in items.items() if own.count)
    return ConfigError(
        f"{where}.margins.{name}", "no test item, so nothing can be decided", f"a measure with items: {has or 'none'}",
        f"~{where}.margins.{name}, or test rows with such a target",
    )  # fmt: skip
