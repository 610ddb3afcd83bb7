"""Notes of a verdict: what its items, slices and bounds cannot show."""

from collections.abc import Iterator, Mapping

from tasks.evaluate.verdict.evidence import Evidence
from tasks.evaluate.verdict.slices import Slices, slices_of
from tasks.shared.formats.verdict import Comparison, Gate, Mode
from tasks.shared.items import Items

SHOWN = 6
SECOND_LOOK = (
    "More test items may decide, but each further look at a grown test set raises the error of the fixed test: from 5 % to 8 % with a second "
    "one on twice the items, and to 10 % with a third on four times (docs/decisions/0021-evidence-that-may-be-looked-at.md). "
    "mode: adaptive may be looked at any number of times."
)


def is_open(measure: str, comparisons: Mapping[str, Comparison]) -> bool:
    """Return True unless every candidate that has this measure is decided on it."""
    answers = {found.measures[measure].answer for found in comparisons.values() if measure in found.measures}
    return not answers or "unknown" in answers


def power_notes(
    items: Mapping[str, Items],
    gates: Mapping[str, Gate],
    detectable: Mapping[str, float],
    discordance: float,
    power: float,
) -> Iterator[str]:
    """Yield notes on margins that these items cannot decide.

    items: by measure.  detectable: smallest margin by measure that they can.
    """
    for name, gate in gates.items():
        if gate.margin is not None and not items[name].count:
            yield f"{name}: no items, so no decision is possible."
    for name, smallest in detectable.items():
        margin = gates[name].margin
        if margin is not None and not gates[name].relative and smallest > margin:
            yield (
                f"{name}: {items[name].in_words('items')} are too few for a margin of {margin:.3g}; with {discordance:.0%} of them flipping, "
                f"an equal candidate passes with {power:.0%} probability only at a margin of at least {smallest:.3g}."
            )


def slice_notes(slices: Slices, evidence: Evidence, gates: Mapping[str, Gate]) -> Iterator[str]:
    """Yield notes on slices too small to test."""
    for dimension in slices.by:
        small = sorted({
            value
            for name, gate in gates.items()
            if gate.margin is not None
            for found, value, members in slices_of(evidence.items_of(name), [dimension])
            if len(members) < slices.min_items
        })  # fmt: skip
        if small:
            shown = ", ".join(small[:SHOWN]) + (f" and {len(small) - SHOWN} more" if len(small) > SHOWN else "")
            yield f"Slices by {dimension} with fewer than {slices.min_items} items, not tested: {shown}."


def mode_notes(mode: Mode, alpha: float, comparisons: Mapping[str, Comparison]) -> Iterator[str]:
    """Yield notes on further looks: their cost if fixed, the limits of an adaptive verdict."""
    if mode == "fixed":
        if any(found.decision == "not enough data" for found in comparisons.values()):
            yield SECOND_LOOK
        return
    yield (
        "Adaptive verdict: bounds and decisions hold at any number of looks; a decision stands once its evidence reached "
        f"{1.0 / alpha:g}. Estimates that stopped a test early lie somewhat too far from the margin."
    )
    unbounded = {
        name
        for comparison in comparisons.values()
        for name, found in comparison.measures.items()
        if found.margin is not None and found.wealth is None
    }
    for name in sorted(unbounded):
        yield f"{name}: the range of its values is not known, so it is decided by the fixed test; a second look on more items would raise its error."
