"""Sentences of a verdict: the candidate that ships, or the reason against the nearest one."""

from tasks.shared.formats.verdict import Comparison, Gate, MeasureComparison, SliceComparison, Verdict
from tasks.shared.text.numbers import gap, gap_unit, interval, margin, times

ANSWER_RANK = {"no": 0, "unknown": 1, "yes": 2}
DECISION_RANK = {"ship": 2, "not enough data": 1, "do not ship": 0}


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
        comparison = verdict.comparisons[name]
        closest = closest_measure(comparison)
        margin_left = float("-inf") if closest is None else headroom(closest[1])
        return DECISION_RANK[comparison.decision], margin_left, times_smaller(verdict, name) or 0.0

    return max(verdict.comparisons, key=nearness, default=None)


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


def change(gate: Gate, result: MeasureComparison) -> str:
    """Phrase for a candidate's loss or gain on one measure, with interval and margin."""
    title, unit = gate.measure.title, gate.measure.unit
    allowed = f", margin {margin(result.margin, unit)}"
    if result.answer == "yes":
        return f"{title} {gap(result.difference, unit)} {gap_unit(unit)} {interval(result.low, result.high, unit)}{allowed}"
    phrase = loss(gate, result.difference, result.low, result.high) + allowed
    return (
        phrase if result.difference <= -(result.margin or 0.0) < 0 else f"{phrase}: a loss beyond it is not ruled out"
    )


def slice_change(gate: Gate, part: SliceComparison) -> str:
    """Phrase for a candidate's loss in one slice."""
    where = f"where {part.dimension} is {part.value} ({part.n} items)"
    phrase = loss(gate, part.difference, part.low, part.high)
    return f"{phrase} {where}, slice margin {margin(part.margin, gate.measure.unit)}"


def gains(verdict: Verdict, name: str) -> str:
    """Phrase for a candidate's size and speed relative to the baseline."""
    smaller, ratio = times_smaller(verdict, name), verdict.models[name].speed_ratio
    parts = [] if smaller is None else [f"{times(smaller)} smaller than {verdict.baseline}"]
    if ratio is not None and ratio.low > 1:
        parts = [f"{times(smaller)} smaller"] if smaller is not None else []
        parts.append(f"{times(ratio.median)} faster than {verdict.baseline}")
    elif ratio is not None:
        parts.append(
            f"at {times(ratio.median)} its speed"
            if parts
            else f"at {times(ratio.median)} the speed of {verdict.baseline}"
        )
    return " and ".join(parts) if parts else "size and speed not measured"


def obstacle(verdict: Verdict, name: str) -> str:
    """Phrase for the reason against a candidate, to follow its name."""
    comparison, model = verdict.comparisons[name], verdict.models.get(name)
    closest = closest_measure(comparison)
    harmed = [part for part in comparison.slices if part.harmed]
    if harmed and (closest is None or closest[1].answer != "no"):
        worst = min(harmed, key=lambda part: part.difference / max(part.margin, 1e-9))
        return slice_change(verdict.gates[worst.measure], worst)
    if closest is not None and closest[1].answer != "yes":
        return change(verdict.gates[closest[0]], closest[1])
    if model is not None and model.failures:
        step, why = next(iter(model.failures.items()))
        return f"could not be measured in {step} ({why.rstrip('.')})"
    absent = [title_of(verdict, measure) for measure in verdict.margin if measure not in comparison.measures]
    if absent or closest is None:
        return f"was not measured on {', '.join(absent) or 'any measure'}"
    return "was rejected by the evaluation (see the notes)"


def candidate_line(verdict: Verdict, name: str, lead: str = "") -> str:
    """Sentence of a candidate's decision, with the number that decides.

    lead: words for the candidate instead of its name.
    """
    comparison, lead = verdict.comparisons.get(name), lead or name
    if comparison is None:
        return f"{lead} was not compared with {verdict.baseline}."
    if comparison.decision != "ship":
        return f"{lead} {obstacle(verdict, name)}."
    closest = closest_measure(comparison)
    detail = f" (closest: {change(verdict.gates[closest[0]], closest[1])})" if closest else ""
    return f"{lead} is {gains(verdict, name)}, and every measure is inside its margin{detail}."


def decision_line(verdict: Verdict) -> str:
    """Sentence of the run's decision, with the numbers that decide."""
    name = nearest_candidate(verdict)
    if name is None:
        return f"{verdict.decision.capitalize()}: no candidate was compared with {verdict.baseline}."
    role = "the smallest candidate that may ship" if verdict.decision == "ship" else "the nearest candidate"
    lead = f"{role}, {name}," if len(verdict.comparisons) > 1 else name
    return f"{verdict.decision.capitalize()}: {candidate_line(verdict, name, lead)}"


def reason(line: str) -> str:
    """Sentence of a decision line without the decision, for use under a heading with it."""
    rest = line.partition(": ")[2]
    return "T" + rest[1:] if rest.startswith("the ") else rest
