"""Typed record of a report's content, rendered as the page and stored in report.json."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.dataclasses import dataclass

from tasks.report.content.cards import Block
from tasks.report.content.curves import Curve, Layer
from tasks.report.content.provenance import Origin, measured_parent
from tasks.report.words.result import candidate_text, result_of
from tasks.report.words.wording import lowest_retention, times_faster, times_smaller
from tasks.shared.formats.records import Machine
from tasks.shared.formats.scores import Role
from tasks.shared.formats.verdict import (
    Cliff,
    Decision,
    Flip,
    Gate,
    MeasureComparison,
    Mode,
    ModelMeasures,
    NoiseFloor,
    SliceComparison,
    Verdict,
    interval_name,
)
from tasks.shared.formats.verdict import TestSplit as Split


class Part(BaseModel):
    """Base of every part of a report."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Retention(Part):
    """Measure with a candidate's lowest retention."""

    measure: str
    share: float


class ModelRow(Part):
    """One model with its ratios to the baseline; None if not measured."""

    name: str
    role: Role
    digest: str
    parent: str
    """Measured model that it was made from; empty for the baseline, or if unknown."""
    technique: str
    """Stage and technique that made it, such as quantize/gptq; empty if unknown."""
    decision: Decision | None
    sentence: str
    reasons: list[str]
    """Reasons of the evaluation for its decision."""
    times_smaller: float | None
    times_faster: float | None
    """Speed relative to the baseline, timed in the same engine and round by round; its range is `measured.speed_ratio`."""
    lowest_retention: Retention | None
    measured: ModelMeasures


class ComparisonRow(Part):
    """One measure of one candidate."""

    candidate: str
    measure: str
    result: MeasureComparison


class SliceRow(Part):
    """One measure of one candidate in one slice."""

    candidate: str
    result: SliceComparison


class FlipGroup(Part):
    """Flips of one candidate: counts over the whole verdict, and the flips shown."""

    candidate: str
    to_wrong: int
    to_right: int
    shown: list[Flip]


class Training(Part):
    """Loss curve of one model's training."""

    model: str
    points: list[Curve]


class Pruning(Part):
    """Influence of each block of the source model of a pruning step."""

    model: str
    layers: list[Layer]


class Card(Part):
    """Card of an artifact: as read (`raw`), and as tables (`blocks`)."""

    title: str
    blocks: list[Block]
    raw: Any


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Licenses:
    """Licenses and terms, which no file of a model or a corpus states.  Empty: "not stated"."""

    model: str = ""
    """License of the recipe's source model; an SPDX identifier if there is one."""
    data: str = ""
    """License of the corpus."""
    teacher: str = ""
    """Terms for training on the teacher's answers."""


class Reproduce(Part):
    """Instructions to reproduce the figures.

    made: date and time of the verdict (UTC) from its manifest; empty without one.
    """

    command: str
    seed: int
    recipe: str
    made: str


class Report(Part):
    """Content of a report."""

    version: int = 2
    title: str
    decision: Decision
    shipped: str | None
    nearest: str | None
    sentence: str
    """The decision, and one or two sentences on the model that may ship, or is nearest to it."""
    further: list[str] = []
    """A sentence for each candidate smaller than the shipped one."""
    baseline: str
    reference: str | None
    gates: dict[str, Gate]
    mode: Mode = "fixed"
    alpha: float
    power: float
    test: Split
    models: list[ModelRow]
    comparisons: list[ComparisonRow]
    slices: list[SliceRow]
    noise: dict[str, list[NoiseFloor]]
    cliffs: dict[str, Cliff] = {}
    """By measure."""
    flips: list[FlipGroup]
    flips_total: int
    training: list[Training]
    pruning: list[Pruning]
    parity: list[Card]
    corpus: list[Card]
    traces: list[Card]
    machine: Machine
    versions: dict[str, str]
    notes: list[str]
    origins: dict[str, Origin]
    """Origin of each input artifact, by name."""
    base_model: str
    licenses: Licenses
    packed: str
    """Folder next to the page with the shipped model; empty if no model is packed."""
    reproduce: Reproduce

    @property
    def intervals(self) -> str:
        """Name of the intervals of differences, such as "90 % intervals"."""
        return interval_name(self.alpha, self.mode)

    @property
    def deciding(self) -> list[tuple[str, Gate]]:
        """Measures with a margin, which decide."""
        return [(name, gate) for name, gate in self.gates.items() if gate.margin is not None]

    @property
    def candidates(self) -> list[str]:
        """Names of the compared models, parents included, in the order of the verdict."""
        return [row.name for row in self.models if row.decision is not None]

    def model(self, name: str) -> ModelRow:
        """Row of a model by name."""
        return next(row for row in self.models if row.name == name)


def model_rows(verdict: Verdict, origins: Mapping[str, Origin]) -> list[ModelRow]:
    """Rows of all models: baseline, candidates and parents, repeats, reference.

    Within each role they are in the order of the verdict.
    """
    order = {"baseline": 0, "candidate": 1, "parent": 1, "repeat": 2, "reference": 3}
    return [
        model_row(verdict, origins, name)
        for name, measured in sorted(verdict.models.items(), key=lambda pair: order[pair[1].role])
    ]


def model_row(verdict: Verdict, origins: Mapping[str, Origin], name: str) -> ModelRow:
    """Row of one model."""
    measured, comparison, origin = verdict.models[name], verdict.comparisons.get(name), origins.get(name)
    lowest = lowest_retention(comparison)
    return ModelRow(
        name=name,
        role=measured.role,
        digest=measured.digest or (origin.digest if origin else ""),
        parent=measured.made_from or measured_parent(origins, name, verdict.models),
        technique=origin.technique if origin else "",
        decision=comparison.decision if comparison else None,
        sentence=candidate_text(verdict, name) if comparison else "",
        reasons=comparison.reasons if comparison else [],
        times_smaller=times_smaller(verdict, name),
        times_faster=times_faster(verdict, name),
        lowest_retention=Retention(measure=lowest[0], share=lowest[1]) if lowest else None,
        measured=measured,
    )


def comparison_rows(verdict: Verdict) -> list[ComparisonRow]:
    """Rows of every measure of every candidate, in the order of the verdict."""
    return [
        ComparisonRow(candidate=name, measure=measure, result=result)
        for name, comparison in verdict.comparisons.items()
        for measure, result in comparison.measures.items()
    ]


def choose_flips(flips: Sequence[Flip], most: int) -> list[Flip]:
    """Choose at most `most` flips, in turn from each candidate, direction and measure."""
    groups: dict[tuple[str, str, str], list[Flip]] = {}
    for flip in sorted(flips, key=lambda f: f.direction != "to_wrong"):
        groups.setdefault((flip.candidate, flip.direction, flip.measure), []).append(flip)
    turns = [flip for turn in zip_longest(*groups.values()) for flip in turn if flip is not None]
    return turns[:most]


def flip_groups(verdict: Verdict, most: int) -> list[FlipGroup]:
    """Flips to show by candidate, newly wrong ones first.  most: their largest number in total."""
    shown = choose_flips(verdict.flips, most)
    names = dict.fromkeys([*verdict.comparisons, *(flip.candidate for flip in verdict.flips)])
    groups = []
    for name in names:
        own = [flip for flip in verdict.flips if flip.candidate == name]
        lost = sum(flip.direction == "to_wrong" for flip in own)
        kept = [flip for flip in shown if flip.candidate == name]
        kept.sort(key=lambda f: (f.direction != "to_wrong", f.measure))
        groups.append(FlipGroup(candidate=name, to_wrong=lost, to_right=len(own) - lost, shown=kept))
    return [group for group in groups if group.to_wrong or group.to_right]


def from_verdict(
    verdict: Verdict, origins: Mapping[str, Origin], max_flips: int, reproduce: Reproduce, **other: Any
) -> Report:
    """Build the report of a verdict.

    other: title, licenses, and the cards and curves that exist.
    """
    result = result_of(verdict)
    empty: dict[str, Any] = {"training": [], "pruning": [], "parity": [], "corpus": [], "traces": []}
    return Report(
        decision=verdict.decision,
        shipped=verdict.shipped,
        nearest=result.name,
        sentence=result.line,
        further=result.further,
        baseline=verdict.baseline,
        reference=verdict.reference,
        gates=verdict.gates,
        mode=verdict.mode,
        alpha=verdict.alpha,
        power=verdict.power,
        test=verdict.test,
        models=model_rows(verdict, origins),
        comparisons=comparison_rows(verdict),
        slices=[
            SliceRow(candidate=name, result=part)
            for name, found in verdict.comparisons.items()
            for part in found.slices
        ],
        noise=verdict.noise,
        cliffs=verdict.cliffs,
        flips=flip_groups(verdict, max_flips),
        flips_total=len(verdict.flips),
        machine=verdict.machine,
        versions=verdict.versions,
        notes=verdict.notes,
        origins=dict(origins),
        reproduce=reproduce,
        **(empty | other),
    )
