"""Performance-delta log: each candidate's changes, and their effect per measure and slice.

It contains the facts that technical documentation of a modified model needs: changes, test data, metrics, results and known limits
(Regulation (EU) 2024/1689, Annex IV, points 2 (g), 3, 4 and 6).  It states figures; people judge whether they suffice.
"""

from typing import Any

from tasks.report.content.provenance import changes_since
from tasks.report.content.report import Licenses, ModelRow, Part, Report
from tasks.shared.formats.records import Figure, Machine
from tasks.shared.formats.scores import Measure, Role
from tasks.shared.formats.verdict import Decision, MeasureComparison, Mode, NoiseFloor, SliceComparison
from tasks.shared.formats.verdict import TestSplit as Split
from tasks.shared.store.keys import flatten
from tasks.shared.store.lineage import SOURCE
from tasks.shared.technique import Kind
from tasks.shared.text.numbers import gap_unit, margin


class Change(Part):
    """One step between the baseline and a candidate.

    inputs: digests of the step's inputs, by name.  after: digest of the model that it made.
    """

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
    """A candidate: its changes and their effects."""

    name: str
    digest: str
    role: Role = "candidate"
    decision: Decision
    statement: str
    reasons: list[str]
    changes: list[Change]
    traced: bool
    """True if the changes lead back to the baseline; false if a manifest is missing."""
    size_bytes: int
    format: str
    engine: str
    speed_engine: str = ""
    measures: dict[str, MeasureComparison]
    slices: list[SliceComparison]
    figures: dict[str, Figure]
    failures: dict[str, str]


class Base(Part):
    """The baseline, which all candidates are compared with."""

    name: str
    digest: str
    size_bytes: int
    format: str
    engine: str
    speed_engine: str = ""
    figures: dict[str, Figure]


class Data(Part):
    """A data artifact with its card."""

    name: str
    role: str
    technique: str
    digest: str
    card: dict[str, Any]


class PerformanceLog(Part):
    """Content of performance.json.

    date: of the verdict (UTC, ISO 8601); empty without a manifest.
    """

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
    """Margins by measure; a share of the baseline's value for measures in `relative`."""
    relative: list[str]
    mode: Mode
    """adaptive: intervals and p-values are valid at any number of looks, and each measure has its evidence (`wealth`)."""
    confidence: float
    power: float
    test: Split
    data: list[Data]
    noise: dict[str, list[NoiseFloor]]
    limits: list[str]
    evidence: dict[str, str]
    """Digests of all input artifacts, by name."""
    licenses: Licenses
    machine: Machine
    versions: dict[str, str]
    command: str
    seed: int


def performance_log(report: Report) -> PerformanceLog:
    """Build the log of a report."""
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
        mode=report.mode,
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
    """Build the log of one candidate."""
    steps = changes_since(report.origins, report.baseline, row.name)
    first = steps[0].made_from if steps else {}
    return Modified(
        name=row.name,
        digest=row.digest,
        role=row.role,
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
    """Corpus and traces, with their cards."""
    cards = {card.title: card.raw for card in (*report.corpus, *report.traces)}
    roles = {
        Kind.ROWS: "conversations before they were split", Kind.CORPUS: "training, calibration and test data",
        Kind.TRACES: "answers that the models were trained on",
    }  # fmt: skip
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
    """Limits of the figures, as sentences.

    They cover margins too small for the test, thin slices, models that failed, and the notes of the verdict.
    """
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
            f"Slices in which a loss of the size of the margin would go undetected: {', '.join(f'{d} {v}' for d, v in sorted(thin))}."
        )
    for row in report.models:
        found += [f"{row.name} was not measured in {step}: {why}" for step, why in row.measured.failures.items()]
    return [*found, *report.notes]
