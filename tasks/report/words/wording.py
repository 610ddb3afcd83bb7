"""The verdict in words: which candidate ships, or which number stops the nearest one."""

from tasks.shared.formats.verdict import Comparison, Gate, MeasureComparison, SliceComparison, Verdict
from tasks.shared.numbers import gap, gap_unit, interval, margin, times

STANDING = {"no": 0, "unknown": 1, "yes": 2}
NEARNESS = {"ship": 2, "not enough data": 1, "do not ship": 0}


def times_smaller(verdict: Verdict, name: str) -> float | None:
    """Baseline bytes over the model's bytes; None when a size is missing or zero."""
    baseline, model = verdict.models.get(verdict.baseline), verdict.models.get(name)
    if baseline is None or model is None or not model.size_bytes:
        return None
    return baseline.size_bytes / model.size_bytes


def times_faster(verdict: Verdict, name: str) -> float | None:
    """The model's speed over the baseline's as it was timed, in one engine and round by round; None when it was not.

    Never a quotient of two models' tokens per second: those may be of different engines.
    """
    model = verdict.models.get(name)
    if model is None:
        return None
    if name == verdict.baseline:
        return 1.0 if model.tokens_per_second else None
    return model.speed_ratio.median if model.speed_ratio else None


def title_of(verdict: Verdict, measure: str) -> str:
    """A measure as it is called in a sentence."""
    gate = verdict.gates.get(measure)
    return gate.measure.title if gate else measure.replace("_", " ")


def lowest_retention(comparison: Comparison | None) -> tuple[str, float] | None:
    """The measure that a candidate keeps least of, and its share of the baseline's score."""
    kept = [] if comparison is None else [(name, m.retention) for name, m in comparison.measures.items()]
    known = [(name, share) for name, share in kept if share is not None]
    return min(known, key=lambda pair: pair[1]) if known else None


def room(result: MeasureComparison) -> float:
    """What is left between the lower bound and the margin, in margins, so that measures of any unit compare."""
    allowed = result.margin or 0.0
    return (result.low + allowed) / max(allowed, 1e-9)


def closest_measure(comparison: Comparison) -> tuple[str, MeasureComparison] | None:
    """The measure that decides: one that fails before one that is open before one that passes; then the one with the least room."""
    deciding = [(name, result) for name, result in comparison.measures.items() if result.margin is not None]
    return min(deciding, key=lambda pair: (STANDING[pair[1].answer], room(pair[1])), default=None)


def nearest_candidate(verdict: Verdict) -> str | None:
    """The shipped candidate, or the one that is nearest to it: by its decision, then by its room (the smaller of equals)."""
    if verdict.shipped is not None:
        return verdict.shipped

    def nearness(name: str) -> tuple[int, float, float]:
        comparison = verdict.comparisons[name]
        closest = closest_measure(comparison)
        left = float("-inf") if closest is None else room(closest[1])
        return NEARNESS[comparison.decision], left, times_smaller(verdict, name) or 0.0

    return max(verdict.comparisons, key=nearness, default=None)


def loss(gate: Gate, difference: float, low: float, high: float) -> str:
    """A difference in favor of the candidate, told as a loss or a gain, with its interval."""
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
    """A bound of a loss: a sign only if it is a gain."""
    return gap(value, unit, signed=value < 0)


def change(gate: Gate, result: MeasureComparison) -> str:
    """What a candidate loses or gains on one measure, with interval and margin."""
    title, unit = gate.measure.title, gate.measure.unit
    allowed = f", margin {margin(result.margin, unit)}"
    if result.answer == "yes":
        return f"{title} {gap(result.difference, unit)} {gap_unit(unit)} {interval(result.low, result.high, unit)}{allowed}"
    told = loss(gate, result.difference, result.low, result.high) + allowed
    return told if result.difference <= -(result.margin or 0.0) < 0 else f"{told}: a loss beyond it is not ruled out"


def slice_change(gate: Gate, part: SliceComparison) -> str:
    """What a candidate loses within one slice."""
    where = f"where {part.dimension} is {part.value} ({part.n} items)"
    told = loss(gate, part.difference, part.low, part.high)
    return f"{told} {where}, slice margin {margin(part.margin, gate.measure.unit)}"


def gains(verdict: Verdict, name: str) -> str:
    """Size and speed of a candidate against the baseline, as far as they were measured."""
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
    """What keeps a candidate from shipping, as the rest of a sentence about it."""
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
        return f"was not measured on {', '.join(absent) or 'anything'}"
    return "was refused by the evaluation (see the notes)"


def candidate_line(verdict: Verdict, name: str, lead: str = "") -> str:
    """One candidate's decision in a sentence, with the number that decides.  lead: what to call it instead of its name."""
    comparison, lead = verdict.comparisons.get(name), lead or name
    if comparison is None:
        return f"{lead} was not compared with {verdict.baseline}."
    if comparison.decision != "ship":
        return f"{lead} {obstacle(verdict, name)}."
    closest = closest_measure(comparison)
    detail = f" (closest: {change(verdict.gates[closest[0]], closest[1])})" if closest else ""
    return f"{lead} is {gains(verdict, name)}, and every measure is inside its margin{detail}."


def decision_line(verdict: Verdict) -> str:
    """The decision of the whole run in one sentence, with the numbers that decide."""
    name = nearest_candidate(verdict)
    if name is None:
        return f"{verdict.decision.capitalize()}: no candidate was compared with {verdict.baseline}."
    role = "the smallest candidate that may ship" if verdict.decision == "ship" else "the nearest candidate"
    lead = f"{role}, {name}," if len(verdict.comparisons) > 1 else name
    return f"{verdict.decision.capitalize()}: {candidate_line(verdict, name, lead)}"


def reason(line: str) -> str:
    """A decision line without the decision, as a sentence of its own under a heading that says it."""
    rest = line.partition(": ")[2]
    return "T" + rest[1:] if rest.startswith("the ") else rest
