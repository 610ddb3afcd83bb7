"""Decisions from comparisons: ship, do not ship, or not enough data."""

from collections.abc import Mapping, Sequence

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
        f"{name}: {_change(found, gates[name])}: too few items to tell"
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


def _amount(value: float, gate: Gate, signed: bool = True) -> str:
    """Format a difference: in points for shares, else in the measure's unit."""
    share = gate.measure.unit == "share"
    number = f"{100 * value:+.1f}" if share else f"{value:+.3g}"
    return f"{number if signed else number.lstrip('+')} {'points' if share else gate.measure.unit}"


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
