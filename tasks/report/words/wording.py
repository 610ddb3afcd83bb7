"""Ratios, ranks and phrases of a verdict, which sentences, tables and figures share."""

from math import ceil, inf

from tasks.shared.formats.verdict import Comparison, Gate, MeasureComparison, SliceComparison, Verdict
from tasks.shared.text.numbers import gap, gap_unit, interval, margin

ANSWER_RANK = {"no": 0, "unknown": 1, "yes": 2}
DECISION_RANK = {"ship": 2, "not enough data": 1, "do not ship": 0}
HOPELESS = 25.0
"""Largest growth of a test that is worth naming."""


def times_smaller(verdict: Verdict, name: str) -> float | None:
    """Ratio of the baseline's bytes to the model's bytes; None if a size is missing or zero."""
    baseline, model = verdict.models.get(verdict.baseline), verdict.models.get(name)
    if baseline is None or model is None or not model.size_bytes:
        return None
    return baseline.size_bytes / model.size_bytes


def times_faster(verdict: Verdict, name: str) -> float | None:
    """Ratio of the model's speed to the baseline's; None if they were not timed together.

    Both are timed in one engine, round by round.  It is never a quotient of two models' tokens per second, which may be from
    different engines.
    """
    model = verdict.models.get(name)
    if model is None:
        return None
    if name == verdict.baseline:
        return 1.0 if model.tokens_per_second else None
    return model.speed_ratio.median if model.speed_ratio else None


def title_of(verdict: Verdict, measure: str) -> str:
    """Name of a measure in a sentence."""
    gate = verdict.gates.get(measure)
    return gate.measure.title if gate else measure.replace("_", " ")


def lowest_retention(comparison: Comparison | None) -> tuple[str, float] | None:
    """Measure with the lowest retention, and its share of the baseline's score."""
    kept = [] if comparison is None else [(name, m.retention) for name, m in comparison.measures.items()]
    known = [(name, share) for name, share in kept if share is not None]
    return min(known, key=lambda pair: pair[1]) if known else None


def headroom(result: MeasureComparison) -> float:
    """Distance from the margin to the lower bound, in margins, comparable across units."""
    allowed = result.margin or 0.0
    return (result.low + allowed) / max(allowed, 1e-9)


def closest_measure(comparison: Comparison) -> tuple[str, MeasureComparison] | None:
    """Measure closest to failing: failed before undecided before passed, then by least headroom."""
    deciding = [(name, result) for name, result in comparison.measures.items() if result.margin is not None]
    return min(deciding, key=lambda pair: (ANSWER_RANK[pair[1].answer], headroom(pair[1])), default=None)


def nearest_candidate(verdict: Verdict) -> str | None:
    """Name of the shipped candidate, or of the one nearest to shipping.

    Nearest by decision, then by headroom, then by size.
    """
    if verdict.shipped is not None:
        return verdict.shipped

    def nearness(name: str) -> tuple[int, float, float]:
        comparison = verdict.proposed[name]
        closest = closest_measure(comparison)
        margin_left = float("-inf") if closest is None else headroom(closest[1])
        return DECISION_RANK[comparison.decision], margin_left, times_smaller(verdict, name) or 0.0

    return max(verdict.proposed, key=nearness, default=None)


def loss(gate: Gate, difference: float, low: float, high: float) -> str:
    """Phrase for a difference: a loss or a gain of the candidate, with its interval."""
    title, unit = gate.measure.title, gate.measure.unit
    size = f"{gap(abs(difference), unit, signed=False)} {gap_unit(unit)}"
    if difference >= 0:
        verb = f"gains {size} of {title}" if gate.measure.better == "higher" else f"is {size} better in {title}"
        return f"{verb} {interval(low, high, unit)}"
    # A loss reads as a positive number, so the bounds swap and change sign.
    bounds = f"[{unsigned(-high, unit)}, {unsigned(-low, unit)}]"
    verb = f"loses {size} of {title}" if gate.measure.better == "higher" else f"is {size} worse in {title}"
    return f"{verb} {bounds}"


def unsigned(value: float, unit: str) -> str:
    """Format a bound of a loss, with a sign only if it is a gain."""
    return gap(value, unit, signed=value < 0)


def slice_change(gate: Gate, part: SliceComparison) -> str:
    """Phrase for a candidate's loss in one slice."""
    where = f"where {part.dimension} is {part.value} ({part.n} items)"
    phrase = loss(gate, part.difference, part.low, part.high)
    return f"{phrase} {where}, slice margin {margin(part.margin, gate.measure.unit)}"


def bounded(gate: Gate, result: MeasureComparison, alpha: float) -> str:
    """Phrase for a measured change and the largest loss that is not ruled out.

    For example "loses 1.2 points, at most 3.4 with 95 % confidence (margin 5)".
    """
    unit, higher = gate.measure.unit, gate.measure.better == "higher"
    size, most = gap(abs(result.difference), unit, signed=False), gap(abs(result.low), unit, signed=False)
    sure = f"with {100 * (1 - alpha):.3g} % confidence (margin {margin(result.margin, unit)})"
    if result.difference < 0:
        return (
            f"{'loses' if higher else 'is'} {size} {gap_unit(unit)}{'' if higher else ' worse'}, at most {most} {sure}"
        )
    gained = f"gains {size} {gap_unit(unit)}" if higher else f"is {size} {gap_unit(unit)} better"
    if result.difference == 0:
        gained = "is unchanged"
    if result.low >= 0:
        return f"{gained}, at least {most} {sure}"
    return f"{gained} and {'loses' if higher else 'is'} at most {most}{'' if higher else ' worse'} {sure}"


def open_loss(gate: Gate, result: MeasureComparison) -> str:
    """Phrase for a loss that is neither shown nor ruled out.

    For example "may lose up to 12.6 points of fact accuracy (measured: 3.6, margin 10)".
    """
    title, unit, higher = gate.measure.title, gate.measure.unit, gate.measure.better == "higher"
    most = f"{gap(max(0.0, -result.low), unit, signed=False)} {gap_unit(unit)}"
    measured = gap(abs(result.difference), unit, signed=False)
    if result.difference > 0:
        measured += " gained" if higher else " better"
    phrase = f"may lose up to {most} of {title}" if higher else f"may be up to {most} worse in {title}"
    return f"{phrase} (measured: {measured}, margin {margin(result.margin, unit)})"


def is_close(result: MeasureComparison) -> bool:
    """Return True if the measured loss is within half a margin of the margin."""
    allowed = result.margin or 0.0
    return abs(result.difference + allowed) < allowed / 2


def items_to_decide(result: MeasureComparison) -> int | None:
    """Number of items, in all, that would decide an open measure with the planned power.

    Assumes that the measured difference is the true one (a gain counts as no difference), and extrapolates the interval and the smallest
    margin that an equal candidate passes: both shrink with the square root of the items.  Below the margin they have to fit between
    difference and margin; beyond it between the difference and zero, while the estimate stays beyond the margin.  Near
    the exact number for the fixed test, rough for an adaptive one.  None if more than `HOPELESS` times the items would be needed.
    """
    allowed, difference = result.margin or 0.0, min(0.0, result.difference)
    if difference > -allowed:
        distance, width = allowed + difference, result.difference - result.low
    else:
        distance, width = min(-difference, 3.0 * (-difference - allowed)), result.high - result.difference
    ratio = (max(result.detectable, width) / distance) ** 2 if distance > 0.0 else inf
    return None if ratio > HOPELESS else max(result.n + 1, ceil(result.n * ratio))
