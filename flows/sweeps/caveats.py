"""Text about a sweep: its best candidate, a guide to its figures, and their limits."""

from collections.abc import Sequence
from math import floor

from flows.sweeps.results import Entry, Sweep, baseline_of
from tasks.report.words.result import candidate_text
from tasks.shared.formats.verdict import interval_name
from tasks.shared.text.numbers import gap_unit, margin

SHOWN = 6
"""Largest number of names in a sentence."""


def reading(sweep: Sweep) -> str:
    """Explain the figures of the table."""
    assert sweep.best is not None
    verdict = sweep.best.verdict
    margins = ", ".join(
        f"{name.replace('_', ' ')} {margin(allowed, verdict.gates[name].measure.unit)}{' % of it' if verdict.gates[name].relative else ''}"
        for name, allowed in verdict.margin.items()
    )
    units = ", ".join(dict.fromkeys(gap_unit(verdict.gates[name].measure.unit) for name in verdict.margin))
    return (
        f"Differences from {verdict.baseline} in the candidate's favor, in {units}, with {interval_name(verdict.alpha, verdict.mode, 'bounds')}; "
        f"margins: {margins}. Headroom: the smallest distance from a lower bound to its margin, in margins; negative: outside the margin."
    )


def best_line(sweep: Sweep) -> str:
    """Sentence on the best candidate and its decision; empty without a verdict."""
    best = sweep.best
    if best is None:
        return ""
    where = f"job {best.job} ({sweep.labels[best.job]})"
    return f"Best by verdict: {where}, {best.comparison.decision}: {candidate_text(best.verdict, best.name)}"


def caveats(sweep: Sweep) -> list[str]:
    """Limits of the best candidate's evidence, one or two sentences for each."""
    best = sweep.best
    if best is None:
        return []
    return [line for line in (_shown(sweep, best), _several(sweep, best), *_incomparable(sweep)) if line]


def _shown(sweep: Sweep, best: Entry) -> str:
    """Name the candidates that the best one is not shown to be better than."""
    others = [one for one in sweep.entries if one is not best and not (one.digest and one.digest == best.digest)]
    beaten = [one for one in others if one not in sweep.rivals]
    bounds = interval_name(best.verdict.alpha, best.verdict.mode, "bounds")
    if not others:
        return ""
    if not sweep.rivals:
        return (
            f"It is shown to be better than every other: on some measure that decides, its {bounds} lie above theirs."
        )
    equal = [one for one in others if one.rank[:3] == best.rank[:3]]
    tied = (
        f"{_names(sweep, equal)}: equal in verdict, headroom and size; the best is only the first of them. "
        if equal
        else ""
    )
    named = _names(sweep, sweep.rivals) if beaten else "any other"
    shown = f"The best is not shown to be better than {named}: the {bounds} overlap, or the measures disagree."
    return tied + shown + (f" It is shown to be better than {_names(sweep, beaten)}." if beaten else "")


def _several(sweep: Sweep, best: Entry) -> str:
    """Warn that several models were judged, which raises the chance of a wrong decision."""
    if sweep.models < 2:
        return ""
    alpha, count = best.verdict.alpha, sweep.models
    setting = f"steps.{sweep.jobs[best.job].judge}.alpha={floor(1e4 * alpha / count) / 1e4:g}"
    return (
        f"{count} models were judged, and each has a {_percent(alpha)} chance to ship with a loss of exactly the margin: one of them, "
        f"up to {_percent(min(1.0, alpha * count))} ({setting} makes that {_percent(alpha)} at most). Part of the best "
        "candidate's advantage is luck: judge it on fresh items before you rely on these figures."
    )


def _incomparable(sweep: Sweep) -> list[str]:
    """Name the differences between the jobs' verdicts other than their candidates."""
    verdicts = [job.verdict for job in sweep.jobs if job.verdict is not None]
    first = verdicts[0]
    found = []
    if any(baseline_of(one) != baseline_of(first) for one in verdicts):
        found.append(
            "The jobs have different baselines: each candidate is compared with its own job's, and the best may have had an easier one."
        )
    if any(one.margin != first.margin for one in verdicts):
        found.append("The jobs' margins differ, so their headroom is in different units.")
    if any(one.test.items != first.test.items for one in verdicts):
        found.append("The jobs' numbers of test items differ; more items alone make bounds narrower.")
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _names(sweep: Sweep, entries: Sequence[Entry]) -> str:
    """Candidates with their jobs."""
    alone = len(sweep.candidates) == 1
    names = [f"job {one.job}" if alone else f"{one.name} of job {one.job}" for one in entries]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
