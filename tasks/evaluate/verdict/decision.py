"""Decisions from comparisons: ship, do not ship, or not enough data."""

import math
from collections.abc import Mapping, Sequence

from tasks.evaluate.verdict.betting import confirmed
from tasks.shared.formats.verdict import Comparison, Decision, Gate, MeasureComparison, SliceComparison


def candidate_decision(
    measures: Mapping[str, MeasureComparison],
    slices: Sequence[SliceComparison],
    gates: Mapping[str, Gate],
    failures: Mapping[str, str],
    changed: Mapping[str, float],
) -> tuple[Decision, list[str]]:
    """Return one candidate's decision and its reasons: proven losses first, then open questions.

    measures, slices: its comparisons.  failures: by step, why the candidate has no values there.
    changed: by measure, the share of flipped answers where it exceeds the limit.
    """
    shown = [f"{name}: {_change(found, gates[name])}" for name, found in measures.items() if found.answer == "no"]
    shown += [
        f"{item.measure} where {item.dimension} is {item.value}: {_amount(item.difference, gates[item.measure])} on {item.n} items "
        f"(p = {item.p_holm:.3g} after correction), allowed {_amount(item.margin, gates[item.measure], signed=False)}"
        for item in slices
        if item.harmed
    ]
    shown += [
        f"{name}: {rate:.0%} of the answers changed between right and wrong, more than allowed"
        for name, rate in changed.items()
    ]
    open_ = [
        f"{name}: {_change(found, gates[name])}: too few items to tell{_evidence(found)}"
        for name, found in measures.items()
        if found.answer == "unknown"
    ]
    for name, gate in gates.items():
        if gate.margin is not None and name not in measures:
            open_.append(f"{name}: not measured ({failures.get(gate.step, 'no items')})")
    if shown:
        return "do not ship", shown + open_
    return ("not enough data", open_) if open_ else ("ship", [])


def _change(found: MeasureComparison, gate: Gate) -> str:
    bounds = f"[{_amount(found.low, gate)}, {_amount(found.high, gate)}]"
    return f"{_amount(found.difference, gate)} {bounds}, allowed {_amount(found.margin or 0.0, gate, signed=False)}"


def _evidence(found: MeasureComparison) -> str:
    """Say how much evidence an adaptive test has, of how much it needs."""
    wealth = found.wealth
    return f" (evidence {wealth.now:.3g} of {wealth.needed:g} after {found.n} items)" if wealth else ""


def _amount(value: float, gate: Gate, signed: bool = True) -> str:
    """Format a difference: in points for shares, else in the measure's unit."""
    share = gate.measure.unit == "share"
    number = f"{100 * value:+.1f}" if share else f"{value:+.3g}"
    return f"{number if signed else number.lstrip('+')} {'points' if share else gate.measure.unit}"


def confirm_together(comparisons: Mapping[str, Comparison], alpha: float) -> dict[str, Comparison]:
    """Return the comparisons of several candidates, of which only those ship that e-BH confirms.

    The evidence of a candidate is the smallest of its deciding measures, as it stands after the last item.  A measure without evidence
    (an amount of unknown range) confirms nothing.
    """
    evidence = {name: min(_deciding(found), default=0.0) for name, found in comparisons.items()}
    logs = [math.log(value) if value > 0.0 else -math.inf for value in evidence.values()]
    kept = dict(zip(evidence, confirmed(logs, alpha), strict=True))
    return {
        name: found
        if found.decision != "ship" or kept[name]
        else found.model_copy(update={
            "decision": "not enough data",
            "reasons": [f"evidence {evidence[name]:.3g} is too little among {len(comparisons)} candidates (e-BH at {alpha:g})"],
        })
        for name, found in comparisons.items()
    }  # fmt: skip


def _deciding(found: Comparison) -> list[float]:
    return [
        measure.wealth.now if measure.wealth else 0.0
        for measure in found.measures.values()
        if measure.margin is not None
    ]


def overall_decision(comparisons: Mapping[str, Comparison]) -> Decision:
    """Return ship if any candidate ships, else not enough data if any is undecided."""
    decisions = {found.decision for found in comparisons.values()}
    if "ship" in decisions:
        return "ship"
    return "not enough data" if "not enough data" in decisions else "do not ship"


def choose_shipped(comparisons: Mapping[str, Comparison], size_bytes: Mapping[str, int]) -> str | None:
    """Return the smallest candidate that ships, or None; ties are broken by name."""
    allowed = [name for name, found in comparisons.items() if found.decision == "ship"]
    return min(allowed, key=lambda name: (size_bytes[name], name), default=None)
