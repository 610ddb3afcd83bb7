"""From graded replies to scores, comparisons, flips, and the decision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.evaluate.answers import Reply, shown, wanted
from tasks.evaluate.statistics import (
    count_flips,
    difference_interval,
    mcnemar_p,
    non_inferior,
    retention_interval,
    wilson,
)
from tasks.evaluate.subjects import Subject
from tasks.shared.errors import TechniqueError
from tasks.shared.rows import Row
from tasks.shared.verdict import MEASURES, Comparison, Flip, Item, ItemAnswer, MeasureComparison, Score

Marks = Mapping[str, Mapping[str, bool]]
"""By measure, then by row id: right or wrong."""


@dataclass(frozen=True)
class Sitting:
    """One model's test: the rows that it was asked, its replies by row id, and their marks."""

    subject: Subject
    rows: Sequence[Row]
    replies: Mapping[str, Reply]
    marks: Marks
    perplexity: float | None


def score(marks: Sequence[bool]) -> Score:
    """Proportion right with its 95 % interval."""
    found = wilson(sum(marks), len(marks))
    return Score(value=found.value, low=found.low, high=found.high, n=len(marks))


def scores_of(marks: Marks) -> dict[str, Score]:
    """A score per measure that has items."""
    return {measure: score(list(right.values())) for measure, right in marks.items()}


def scores_by_kind(rows: Sequence[Row], marks: Marks) -> dict[str, dict[str, Score]]:
    """Scores within each row kind, and within the rows that carry their article ("grounded")."""
    groups: dict[str, set[str]] = {}
    for row in rows:
        groups.setdefault(row.kind, set()).add(row.id)
        if row.grounded:
            groups.setdefault("grounded", set()).add(row.id)
    found: dict[str, dict[str, Score]] = {}
    for name, members in sorted(groups.items()):
        inside = {measure: [mark for key, mark in right.items() if key in members] for measure, right in marks.items()}
        found[name] = {measure: score(part) for measure, part in inside.items() if part}
    return found


def compare_measure(
    baseline: Mapping[str, bool], candidate: Mapping[str, bool], margin: float, alpha: float, resamples: int, seed: int
) -> MeasureComparison:
    """One measure on the same items, aligned by id.  Raises TechniqueError if the two did not answer the same items."""
    if baseline.keys() != candidate.keys():
        odd = sorted(baseline.keys() ^ candidate.keys())
        raise TechniqueError(
            "paired comparison",
            f"{len(odd)} items answered by one model only ({', '.join(odd[:3])})",
            "the same items for both",
        )
    before, after = list(baseline.values()), [candidate[key] for key in baseline]
    flips = count_flips(before, after)
    difference = difference_interval(before, after, alpha, resamples, seed)
    retention = retention_interval(before, after, alpha, resamples, seed)
    return MeasureComparison(
        n=flips.items, baseline=sum(before) / flips.items, candidate=sum(after) / flips.items,
        difference=difference.value, low=difference.low, high=difference.high,
        p_mcnemar=mcnemar_p(flips), to_wrong=flips.to_wrong, to_right=flips.to_right, flip_rate=flips.rate,
        retention=retention.value if retention else None,
        retention_low=retention.low if retention else None, retention_high=retention.high if retention else None,
        margin=margin, non_inferior=non_inferior(difference, margin),
    )  # fmt: skip


def compare(
    baseline: Marks, candidate: Marks, margin: Mapping[str, float], alpha: float, resamples: int, seed: int
) -> Comparison:
    """Every measure that has items; ship when all of them are non-inferior."""
    measures = {
        measure: compare_measure(baseline[measure], candidate[measure], margin[measure], alpha, resamples, seed)
        for measure in MEASURES
        if measure in baseline
    }
    return Comparison(
        decision="ship" if all(found.non_inferior for found in measures.values()) else "do not ship", measures=measures
    )


def choose_shipped(comparisons: Mapping[str, Comparison], size_bytes: Mapping[str, int]) -> str | None:
    """The smallest candidate that may ship; ties by name."""
    allowed = [name for name, found in comparisons.items() if found.decision == "ship"]
    return min(allowed, key=lambda name: (size_bytes[name], name), default=None)


def list_flips(rows: Sequence[Row], baseline: Sitting, candidates: Sequence[Sitting]) -> list[Flip]:
    """Every item on which a candidate differs from the baseline, in order of candidate, measure, row."""
    flips = []
    for candidate in candidates:
        for measure in MEASURES:
            before, after = baseline.marks.get(measure, {}), candidate.marks.get(measure, {})
            for row in rows:
                if before.get(row.id) == after.get(row.id):
                    continue
                flips.append(Flip(
                    candidate=candidate.subject.name, id=row.id, kind=row.kind, measure=measure,
                    direction="to_wrong" if before[row.id] else "to_right", question=row.messages[-2].content, wanted=wanted(row, measure),
                    baseline_answer=shown(baseline.replies[row.id], measure), candidate_answer=shown(candidate.replies[row.id], measure),
                ))  # fmt: skip
    return flips


def list_items(rows: Sequence[Row], sittings: Sequence[Sitting]) -> list[Item]:
    """One record per measure and item, with the answer of every model that was asked it.

    over_refusal counts `correct` when the model did not refuse.
    """
    items = []
    for measure in (*MEASURES, "over_refusal"):
        for row in rows:
            answers = {
                sitting.subject.name: ItemAnswer(
                    correct=sitting.marks[measure][row.id] != (measure == "over_refusal"),
                    answer=shown(sitting.replies[row.id], measure),
                )
                for sitting in sittings
                if row.id in sitting.marks.get(measure, {})
            }
            if not answers:
                continue
            items.append(Item(id=row.id, kind=row.kind, grounded=row.grounded, measure=measure, models=answers))
    return items
