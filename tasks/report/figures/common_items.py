"""Scores for figures that set models side by side of which some were asked fewer items."""

from collections.abc import Mapping

from tasks.report.content.report import Report
from tasks.shared.formats.scores import Measure
from tasks.shared.formats.verdict import MeasureComparison, Score
from tasks.shared.text.numbers import SHARE

MOVED = "The scores of a model that was asked fewer items than {baseline} are moved by what {baseline} scores more or less on all items than on these."


def on_common_items(report: Report) -> tuple[Report, str]:
    """Return the report with comparable scores, and a sentence on them if any was moved.

    A model that left an adaptive verdict early has a score on other items than the baseline.  The baseline's own difference between all its
    items and these is added to it: the paired difference on the common items stays, and it is what the verdict is about.
    """
    if report.mode == "fixed":  # all models have the same items
        return report, ""
    baseline = report.model(report.baseline).measured.scores
    found: dict[str, dict[str, MeasureComparison]] = {}
    for compared in report.comparisons:
        found.setdefault(compared.candidate, {})[compared.measure] = compared.result
    rows, moved = [], False
    for row in report.models:
        scores = dict(row.measured.scores)
        for name, result in found.get(row.name, {}).items():
            if name in scores and name in baseline and result.n < baseline[name].n:
                scores[name] = _moved(scores[name], baseline[name].value - result.baseline, report.gates[name].measure)
                moved = True
        rows.append(row.model_copy(update={"measured": row.measured.model_copy(update={"scores": scores})}))
    return report.model_copy(update={"models": rows}), MOVED.format(baseline=report.baseline) if moved else ""


def _moved(score: Score, by: float, measure: Measure) -> Score:
    """Return a score that is higher by so much; a share stays between 0 and 1."""
    parts: Mapping[str, float] = {name: getattr(score, name) + by for name in ("value", "low", "high")}
    if measure.unit == SHARE:
        parts = {name: min(1.0, max(0.0, value)) for name, value in parts.items()}
    return score.model_copy(update=dict(parts))
