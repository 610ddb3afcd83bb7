"""The verdict in words: which candidate ships, or which number stops the nearest one."""

from typing import Literal

from tasks.report.numbers import interval, margin_points, points, times
from tasks.shared.verdict import Comparison, MeasureComparison, Verdict

Answer = Literal["yes", "no", "unknown"]
"""Whether a measure is non-inferior; unknown when the interval crosses the margin, so there are too few items to say."""

MEASURE_NAMES = {
    "intent": "intent accuracy",
    "fact": "fact accuracy",
    "refusal": "correct refusals",
    "over_refusal": "over-refusal",
}


def measure_name(measure: str) -> str:
    """A measure as it is called in a sentence."""
    return MEASURE_NAMES.get(measure, measure.replace("_", " "))


def non_inferior(measure: MeasureComparison) -> Answer:
    """Yes when the interval lies above -margin, no when it lies below it, unknown when it crosses it."""
    if measure.non_inferior:
        return "yes"
    return "no" if measure.high <= -measure.margin else "unknown"


def times_smaller(verdict: Verdict, name: str) -> float | None:
    """Baseline bytes over the model's bytes; None when a size is missing or zero."""
    baseline, model = verdict.models.get(verdict.baseline), verdict.models.get(name)
    if baseline is None or model is None or not model.size_bytes:
        return None
    return baseline.size_bytes / model.size_bytes


def times_faster(verdict: Verdict, name: str) -> float | None:
    """The model's median tokens per second over the baseline's; None when either was not measured."""
    baseline, model = verdict.models.get(verdict.baseline), verdict.models.get(name)
    if baseline is None or model is None or baseline.tokens_per_second is None or model.tokens_per_second is None:
        return None
    if baseline.tokens_per_second.median <= 0:
        return None
    return model.tokens_per_second.median / baseline.tokens_per_second.median


def lowest_retention(comparison: Comparison | None) -> tuple[str, float] | None:
    """The measure that a candidate keeps least of, and its share of the baseline's score."""
    kept = [] if comparison is None else [(name, m.retention) for name, m in comparison.measures.items()]
    known = [(name, share) for name, share in kept if share is not None]
    return min(known, key=lambda pair: pair[1]) if known else None


def closest_measure(comparison: Comparison) -> tuple[str, MeasureComparison] | None:
    """The measure with the least room between its lower bound and the margin."""
    if not comparison.measures:
        return None
    return min(comparison.measures.items(), key=lambda pair: pair[1].low + pair[1].margin)


def nearest_candidate(verdict: Verdict) -> str | None:
    """The shipped candidate, or the one that misses its margin by least (the smaller of equals)."""
    if verdict.shipped is not None:
        return verdict.shipped

    def room(name: str) -> tuple[float, float]:
        closest = closest_measure(verdict.comparisons[name])
        left = float("-inf") if closest is None else closest[1].low + closest[1].margin
        return left, times_smaller(verdict, name) or 0.0

    return max(verdict.comparisons, key=room, default=None)


def change(measure: str, result: MeasureComparison) -> str:
    """What a candidate loses or gains on one measure, with interval and margin."""
    name, margin = measure_name(measure), margin_points(result.margin)
    if non_inferior(result) == "yes":
        return f"{name} {points(result.difference)} points {interval(result.low, result.high)}, margin {margin}"
    open_end = f", margin {margin}: a loss beyond it is not ruled out"
    if result.difference >= 0:
        gained = points(result.difference, signed=False)
        return f"gains {gained} points of {name} {interval(result.low, result.high)}{open_end}"
    # A loss reads as a positive number, so the bounds swap and change sign.
    low, high = points(-result.high, signed=False), points(-result.low, signed=False)
    lost = f"loses {points(-result.difference, signed=False)} points of {name} [{low}, {high}]"
    return lost + (f", margin {margin}" if result.difference <= -result.margin else open_end)


def gains(verdict: Verdict, name: str) -> str:
    """Size and speed of a candidate against the baseline, as far as they were measured."""
    smaller, faster = times_smaller(verdict, name), times_faster(verdict, name)
    parts = [] if smaller is None else [f"{times(smaller)} smaller"]
    if faster is not None:
        parts.append(f"{times(faster)} faster" if faster >= 1 else f"at {times(faster)} the speed")
    return f"{' and '.join(parts)} than {verdict.baseline}" if parts else "size and speed not measured"


def obstacle(verdict: Verdict, comparison: Comparison) -> str:
    """What keeps a refused candidate from shipping, as the rest of a sentence about it."""
    closest = closest_measure(comparison)
    if closest is not None and non_inferior(closest[1]) != "yes":
        return change(*closest)
    absent = [measure_name(name) for name in verdict.margin if name not in comparison.measures]
    if absent or closest is None:
        return f"was not measured on {', '.join(absent) or 'anything'}"
    return "was refused by the evaluation (see the notes)"


def candidate_line(verdict: Verdict, name: str, lead: str = "") -> str:
    """One candidate's decision in a sentence, with the number that decides.  lead: what to call it instead of its name."""
    comparison, lead = verdict.comparisons.get(name), lead or name
    if comparison is None:
        return f"{lead} was not compared with {verdict.baseline}."
    if comparison.decision == "do not ship":
        return f"{lead} {obstacle(verdict, comparison)}."
    closest = closest_measure(comparison)
    detail = f" (closest: {change(*closest)})" if closest else ""
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
