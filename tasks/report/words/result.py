"""Result of a run in words: the model that may ship, its cost, and the smaller candidates."""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.report.words.wording import (
    HOPELESS,
    bounded,
    closest_measure,
    is_close,
    items_to_decide,
    loss,
    nearest_candidate,
    open_loss,
    slice_change,
    times_faster,
    times_smaller,
    title_of,
)
from tasks.shared.formats.verdict import Comparison, Decision, Verdict
from tasks.shared.text.numbers import byte_size, count, margin, percent, smaller, times


@dataclass(frozen=True)
class Result:
    """The result of a verdict.

    name: model that may ship, or the candidate nearest to it; None without a candidate.
    text: one or two sentences on it, to follow "Ship: ".
    further: a sentence for each smaller candidate, the next smaller first; empty if nothing ships.
    """

    decision: Decision
    name: str | None
    text: str
    further: list[str]

    @property
    def line(self) -> str:
        """The decision and its text."""
        return f"{self.decision.capitalize()}: {self.text}"


def result_of(verdict: Verdict) -> Result:
    """Result of a verdict: the smallest model that may ship, or the nearest and what is missing.

    The text names size and speed against the baseline and the closest measured loss with its bound; if nothing ships, the measure that
    fails or is open, and how many items would decide.  Parents, which only explain, are never named.
    """
    name = nearest_candidate(verdict)
    if name is None:
        return Result(verdict.decision, None, f"no candidate was compared with {verdict.baseline}.", [])
    several = len(verdict.proposed) > 1
    if verdict.shipped is None:
        lead = f"the nearest candidate, {_with_size(verdict, name)}," if several else ""
        return Result(verdict.decision, name, candidate_text(verdict, name, lead), [])
    lead = f"the smallest model that may ship, {name}," if several else ""
    return Result(verdict.decision, name, candidate_text(verdict, name, lead), further_down(verdict))


def candidate_text(verdict: Verdict, name: str, lead: str = "") -> str:
    """One or two sentences on a candidate's decision, with the numbers that decide.

    lead: words for the candidate instead of its name.
    """
    comparison = verdict.comparisons[name]
    if comparison.decision != "ship":
        return " ".join(
            [f"{lead or _with_size(verdict, name)} {obstacle(verdict, name)}.", *missing_items(verdict, comparison)]
        )
    gained = f"{lead or name} is {byte_size(verdict.models[name].size_bytes)}, {gains(verdict, name)}."
    found, deciding = closest_measure(comparison), len(verdict.margin)
    if found is None:
        return gained
    title, change = title_of(verdict, found[0]), bounded(verdict.gates[found[0]], found[1], verdict.alpha)
    if deciding == 1:
        return f"{gained} {title[:1].upper()}{title[1:]} {change}."
    return f"{gained} All {deciding} measures that decide are within their margins; the closest, {title}, {change}."


def gains(verdict: Verdict, name: str) -> str:
    """Phrase for a candidate's size and speed relative to the baseline."""
    ratio, speed = times_smaller(verdict, name), verdict.models[name].speed_ratio
    against = smaller(ratio, verdict.baseline)
    if speed is None:
        return f"{against}; speed not measured"
    if speed.low > 1 and ratio is not None and ratio >= 1.05:
        return f"{smaller(ratio)} and {times(speed.median)} faster than {verdict.baseline}"
    return f"{against}, at {times(speed.median)} its speed"


def obstacle(verdict: Verdict, name: str) -> str:
    """Phrase for the reason against a candidate, to follow its name."""
    comparison, model = verdict.comparisons[name], verdict.models[name]
    closest = closest_measure(comparison)
    harmed = [part for part in comparison.slices if part.harmed]
    if harmed and (closest is None or closest[1].answer != "no"):
        worst = min(harmed, key=lambda part: part.difference / max(part.margin, 1e-9))
        return slice_change(verdict.gates[worst.measure], worst)
    shown = closest is not None and closest[1].answer == "no"
    if comparison.reasons and comparison.decision == "do not ship" and not shown:
        return f"was rejected ({comparison.reasons[0]})"
    if closest is not None and closest[1].answer == "unknown":
        return open_loss(verdict.gates[closest[0]], closest[1])
    if closest is not None and closest[1].answer == "no":
        gate, found = verdict.gates[closest[0]], closest[1]
        allowed = f"margin {margin(found.margin, gate.measure.unit)}"
        return f"{loss(gate, found.difference, found.low, found.high)}, {allowed}{dropped(verdict, name, closest[0])}"
    if model.failures:
        step, why = next(iter(model.failures.items()))
        return f"could not be measured in {step} ({why.rstrip('.')})"
    absent = [title_of(verdict, measure) for measure in verdict.margin if measure not in comparison.measures]
    if absent or closest is None:
        return f"was not measured on {', '.join(absent) or 'any measure'}"
    return f"may not ship ({comparison.reasons[0] if comparison.reasons else 'see the notes'})"


def dropped(verdict: Verdict, name: str, measure: str) -> str:
    """Phrase for a candidate that was asked fewer items than the baseline; empty for others."""
    asked, others = verdict.comparisons[name].measures[measure].n, verdict.models[verdict.baseline].scores.get(measure)
    if verdict.mode == "fixed" or others is None or others.n <= asked:
        return ""
    return f"; dropped after {count(asked)} of {count(others.n)} items"


def missing_items(verdict: Verdict, comparison: Comparison) -> list[str]:
    """Sentence on the items that would decide a candidate's open measures; none if none is open."""
    open_ = {name: found for name, found in comparison.measures.items() if found.answer == "unknown"}
    if comparison.decision != "not enough data" or not open_:
        return []
    needed = {name: items_to_decide(found) for name, found in open_.items()}
    never = [name for name, items in needed.items() if items is None]
    close = [title_of(verdict, name) for name in never if is_close(open_[name])]
    far = [title_of(verdict, name) for name in never if not is_close(open_[name])]
    if close:
        several = "losses of {} are so close to their margins" if close[1:] else "loss of {} is so close to the margin"
        return [f"Its {several.format(_listed(close))} that more items would hardly decide."]
    if far:
        return [f"More than {HOPELESS:g} times as many items would be needed for {_listed(far)}."]
    # Of the fixed test, all must be new: a second look on the same items would raise its error.
    known, kind = ({}, "new") if verdict.mode == "fixed" else ({name: found.n for name, found in open_.items()}, "more")
    listed = [
        f"{_rounded((items or 0) - known.get(name, 0))}{'' if place else f' {kind} test items'} for {title_of(verdict, name)}"
        for place, (name, items) in enumerate(needed.items())
    ]
    return [f"About {_listed(listed)} would decide."]


def _listed(names: Sequence[str]) -> str:
    """Join names in words: a, b and c."""
    return f"{', '.join(names[:-1])}{' and ' if names[1:] else ''}{names[-1]}"


def _rounded(items: int) -> str:
    """Format a number to two digits: 1 234 as 1 200."""
    return count(round(items, 2 - len(str(items))))


def further_down(verdict: Verdict) -> list[str]:
    """Sentence for each candidate smaller than the shipped one: what it would save and lose."""
    limit = verdict.models[verdict.shipped].size_bytes if verdict.shipped else 0
    sizes = {name: verdict.models[name].size_bytes for name in verdict.proposed}
    below = sorted((name for name, size in sizes.items() if 0 < size < limit), key=lambda name: -sizes[name])
    return [_step_down(verdict, name, limit - sizes[name]) for name in below]


def _step_down(verdict: Verdict, name: str, saved: int) -> str:
    shipped, size = verdict.shipped or "", verdict.models[name].size_bytes
    gained = f"{name} ({byte_size(size)}) would save another {byte_size(saved)} ({percent(saved / (size + saved), 0)})"
    before, after = times_faster(verdict, shipped), times_faster(verdict, name)
    engines = {verdict.models[one].speed_engine.partition(" (")[0] for one in (shipped, name)}
    if len(engines) == 1 and times(before) != times(after):
        gained += f" and run at {times(after)} instead of {times(before)} the speed of {verdict.baseline}"
    return " ".join([f"{gained}, but {obstacle(verdict, name)}.", *missing_items(verdict, verdict.comparisons[name])])


def _with_size(verdict: Verdict, name: str) -> str:
    """Name of a candidate with its size in brackets, if known."""
    ratio = times_smaller(verdict, name)
    if ratio is None:
        return name
    return f"{name} ({byte_size(verdict.models[name].size_bytes)}, {smaller(ratio, verdict.baseline)})"


def reason(line: str) -> str:
    """Sentences of a result's line without the decision, for use under a heading with it."""
    rest = line.partition(": ")[2]
    return rest[:1].upper() + rest[1:] if rest.startswith("the ") else rest
