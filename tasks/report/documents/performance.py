"""The performance-delta log: what was modified, how, and what that changed, per measure and slice, for every candidate.

It holds what technical documentation says of a modified model: the changes made to it, the test data, the metrics and their results, and
known limits (Regulation (EU) 2024/1689, Annex IV, points 2 (g), 3, 4 and 6).  It states figures; whether they suffice is for people to say.
"""

from typing import Any

from tasks.report.content.provenance import changes_since
from tasks.report.content.report import Licenses, ModelRow, Part, Report
from tasks.shared.formats.records import Figure, Machine
from tasks.shared.formats.scores import Measure
from tasks.shared.formats.verdict import Decision, MeasureComparison, NoiseFloor, SliceComparison
from tasks.shared.formats.verdict import TestSplit as Split
from tasks.shared.numbers import gap_unit, margin
from tasks.shared.store.keys import flatten
from tasks.shared.store.lineage import SOURCE
from tasks.shared.technique import Kind


class Change(Part):
    """One step between the baseline and a candidate.  inputs: digests of what it took, by name; after: of the model that it made."""

    step: str
    technique: str
    settings: dict[str, Any]
    seed: int
    inputs: dict[str, str]
    after: str
    key: str
    code: str
    duration_s: float | None
    made: str


class Modified(Part):
    """A candidate: the changes, and what they did."""

    name: str
    digest: str
    decision: Decision
    statement: str
    reasons: list[str]
    changes: list[Change]
    traced: bool
    """Whether the changes lead back to the baseline; false where a manifest is missing."""
    size_bytes: int
    format: str
    engine: str
    speed_engine: str = ""
    measures: dict[str, MeasureComparison]
    slices: list[SliceComparison]
    figures: dict[str, Figure]
    failures: dict[str, str]


class Base(Part):
    """The model that all candidates are held against."""

    name: str
    digest: str
    size_bytes: int
    format: str
    engine: str
    speed_engine: str = ""
    figures: dict[str, Figure]


class Data(Part):
    """An artifact with data: what it is, and its card."""

    name: str
    role: str
    technique: str
    digest: str
    card: dict[str, Any]


class PerformanceLog(Part):
    """performance.json.  date: when the verdict was made (UTC, ISO 8601); empty where no manifest says it."""

    version: int = 1
    title: str
    date: str
    decision: Decision
    statement: str
    shipped: str | None
    baseline: Base
    candidates: list[Modified]
    measures: dict[str, Measure]
    margins: dict[str, float | None]
    """As a share of the baseline's value for those in `relative`."""
    relative: list[str]
    confidence: float
    power: float
    test: Split
    data: list[Data]
    noise: dict[str, list[NoiseFloor]]
    limits: list[str]
    evidence: dict[str, str]
    """Digest of every artifact that this rests on, by name."""
    licenses: Licenses
    machine: Machine
    versions: dict[str, str]
    command: str
    seed: int


def performance_log(report: Report) -> PerformanceLog:
    """The log of a report."""
    base = report.model(report.baseline)
    return PerformanceLog(
        title=report.title,
        date=report.reproduce.made,
        decision=report.decision,
        statement=report.sentence,
        shipped=report.shipped,
        baseline=Base(
            name=base.name,
            digest=base.digest,
            size_bytes=base.measured.size_bytes,
            format=base.measured.format,
            engine=base.measured.engine,
            speed_engine=base.measured.speed_engine,
            figures=base.measured.figures,
        ),
        candidates=[modified(report, row) for row in report.models if row.decision is not None],
        measures={name: gate.measure for name, gate in report.gates.items()},
        margins={name: gate.margin for name, gate in report.gates.items()},
        relative=[name for name, gate in report.gates.items() if gate.relative],
        confidence=round(1 - 2 * report.alpha, 6),
        power=report.power,
        test=report.test,
        data=data_used(report),
        noise=report.noise,
        limits=limits(report),
        evidence={name: origin.digest for name, origin in report.origins.items()},
        licenses=report.licenses,
        machine=report.machine,
        versions=report.versions,
        command=report.reproduce.command,
        seed=report.reproduce.seed,
    )


def modified(report: Report, row: ModelRow) -> Modified:
    """One candidate."""
    steps = changes_since(report.origins, report.baseline, row.name)
    first = steps[0].made_from if steps else {}
    return Modified(
        name=row.name,
        digest=row.digest,
        decision=row.decision or "not enough data",
        statement=row.sentence,
        reasons=row.reasons,
        changes=[
            Change(
                step=origin.name,
                technique=origin.technique,
                settings=flatten(origin.manifest.settings),
                seed=origin.manifest.seed,
                inputs=origin.made_from,
                after=origin.digest,
                key=origin.manifest.key,
                code=origin.manifest.code,
                duration_s=origin.manifest.duration_s,
                made=origin.manifest.made,
            )
            for origin in steps
            if origin.manifest
        ],
        traced=report.baseline in {name.removeprefix(SOURCE) for name in first},
        size_bytes=row.measured.size_bytes,
        format=row.measured.format,
        engine=row.measured.engine,
        speed_engine=row.measured.speed_engine,
        measures={part.measure: part.result for part in report.comparisons if part.candidate == row.name},
        slices=[part.result for part in report.slices if part.candidate == row.name],
        figures=row.measured.figures,
        failures=row.measured.failures,
    )


def data_used(report: Report) -> list[Data]:
    """Corpus and traces with their cards."""
    cards = {card.title: card.raw for card in (*report.corpus, *report.traces)}
    roles = {Kind.CORPUS: "training, calibration and test data", Kind.TRACES: "answers that the models were trained on"}
    return [
        Data(
            name=name,
            role=roles[origin.kind],
            technique=origin.technique,
            digest=origin.digest,
            card={title.rpartition("/")[2]: raw for title, raw in cards.items() if title.rpartition("/")[0] == name},
        )
        for name, origin in report.origins.items()
        if origin.kind in roles
    ]


def limits(report: Report) -> list[str]:
    """What the figures cannot say: margins below what the test could decide, thin slices, models that failed, and the verdict's notes."""
    found = []
    for name, gate in report.deciding:
        least = report.test.minimum_detectable.get(name)
        if least is not None and not gate.relative and gate.margin is not None and least > gate.margin:
            unit = gate.measure.unit
            found.append(
                f"{gate.measure.title}: with {report.test.items.get(name, 0)} items the smallest margin that can be decided is "
                f"{margin(least, unit)} {gap_unit(unit)}; the margin is {margin(gate.margin, unit)}."
            )
    thin = {
        (part.result.dimension, part.result.value)
        for part in report.slices
        if part.result.detectable > part.result.margin
    }
    if thin:
        found.append(
            f"Slices in which a loss of the size of the margin would go unseen: {', '.join(f'{d} {v}' for d, v in sorted(thin))}."
        )
    for row in report.models:
        found += [f"{row.name} was not measured in {step}: {why}" for step, why in row.measured.failures.items()]
    return [*found, *report.notes]
