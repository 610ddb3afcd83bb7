"""Paired verdict: ship only candidates proven to be no worse than the baseline by a margin."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.evaluate.models_under_test.model_under_test import MODEL_PORTS, ModelUnderTest, list_models
from tasks.evaluate.verdict.cliff import cliff_notes, find_cliffs
from tasks.evaluate.verdict.comparison import Rules, compare_measure, holm_correct, list_flips, noise_floor
from tasks.evaluate.verdict.cost import Prices
from tasks.evaluate.verdict.decision import candidate_decision, choose_shipped, confirm_together, overall_decision
from tasks.evaluate.verdict.description import describe_models, with_costs
from tasks.evaluate.verdict.evidence import Evidence, check_baseline, gather_evidence
from tasks.evaluate.verdict.intervals import wilson
from tasks.evaluate.verdict.metrics import flat_metrics, nested_metrics, quality_measures
from tasks.evaluate.verdict.notes import is_open, mode_notes, power_notes, slice_notes
from tasks.evaluate.verdict.pairs import Pairs, pair_items
from tasks.evaluate.verdict.power import several_notes
from tasks.evaluate.verdict.shortages import Planned, shortages
from tasks.evaluate.verdict.slices import Slices, compare_slice, correct_slices, slices_of
from tasks.evaluate.verdict.stopping import AsksInRounds
from tasks.shared.errors import ConfigError
from tasks.shared.formats.scores import RENAMED, ItemScore, Measure, current_name, read_scores
from tasks.shared.formats.verdict import (
    Comparison,
    Gate,
    MeasureComparison,
    Mode,
    NoiseFloor,
    SliceComparison,
    TestSplit,
    Verdict,
)
from tasks.shared.items import ItemFindings, Items, worth_of
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun, Upstream

Share = Annotated[float, Field(gt=0, lt=1)]
Allowed = Annotated[float, Field(gt=0)]


def _once(margins: dict[str, float]) -> dict[str, float]:
    """Return the margins.  Raises ValueError if a measure has one under each of its names."""
    if len(by_current_name(margins)) < len(margins):
        raise ValueError(f"{', '.join(RENAMED)} is the earlier name of {', '.join(RENAMED.values())}: give one of them")
    return margins


def by_current_name(margins: Mapping[str, float]) -> dict[str, float]:
    """Return margins by the names of measures of today."""
    return {current_name(name): margin for name, margin in margins.items()}


Margins = Annotated[dict[str, Allowed], AfterValidator(_once)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Paired:
    """Paired non-inferiority test of every candidate against the baseline.

    A candidate ships if, on each measure with a margin, its loss is proven to be below the margin, and no slice has a proven loss beyond
    the slices' margin.  Requiring all measures at once needs no correction (intersection-union test, Berger 1982): a candidate that
    truly loses the margin on any measure ships with probability alpha at most.  The smallest candidate that passes is chosen.
    Each of several candidates has this error probability of its own, unless `familywise` divides alpha among them (Bonferroni).
    """

    mode: Mode = "fixed"
    """fixed: one test, at the number of items that there are; looking again after adding items raises its error above alpha.  adaptive:
    evidence that holds at any number of looks, for about 1.5 times the items at one look, and far fewer for clear cases."""
    margins: Margins = Field(default_factory=dict)
    """Allowed loss by measure, in its own unit (0.05 of a share is five points); other measures are reported and decide nothing."""
    relative_margins: Margins = Field(default_factory=dict)
    """Allowed loss as a share of the baseline's value (0.05: five percent more bits per byte)."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Probability, per measure, of shipping a candidate whose true loss equals the margin."""
    familywise: bool | Literal["fdr"] = False
    """Divide alpha among the candidates, so that the probability of shipping any of them wrongly is at most alpha.  fdr (adaptive only):
    ship as many as have evidence together (e-BH), so that at most a share of alpha of those that ship is wrong on average."""
    power: Annotated[float, Field(gt=0.5, lt=1)] = 0.8
    """Probability of passing an equal candidate that the data must offer before a failure to pass counts against a candidate."""
    resamples: Annotated[int, Field(ge=100)] = 5000
    """Bootstrap resamples and sign flips, for measures that are amounts."""
    discordance: Share = 0.06
    """For planning: share of items expected to flip between equally good models, half of them each way.  In adaptive mode the bets expect
    it too, so take it from earlier runs."""
    max_flips: Share = 0.4
    """Share of a deciding measure's answers that may flip between right and wrong, in either direction.  A candidate proven to flip more is
    a different model with the same average."""
    explains: tuple[str, ...] = ()
    """Candidates that are compared and shown but never shipped.

    For example the float source of a quantized candidate, which shows which step lost what.  They do not count among the candidates that
    share alpha."""
    slices: Slices = Field(default_factory=Slices)
    """Slices to test."""
    prices: Prices = Field(default_factory=Prices)
    """Prices for the cost of 1,000 answers."""

    spec: ClassVar[Spec] = Spec(
        summary="The verdict by exact paired bounds, slices and margins: ship, do not ship or not enough data",
        ports={**MODEL_PORTS, "scores": Port((Kind.SCORES,), many=True, wire="recipe")},
        produces=Kind.VERDICT,
        libraries=("scipy", "statsmodels", "numpy"),
    )

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[ConfigError]:
        """Yield mistakes in the recipe, before anything runs."""
        if self.familywise == "fdr" and self.mode != "adaptive":
            wanted, fix = (
                "true or false in fixed mode, whose p-values are not evidence that adds up",
                f"{where}.mode=adaptive",
            )
            yield ConfigError(f"{where}.familywise", "fdr", wanted, fix)
        if both := sorted(by_current_name(self.margins).keys() & by_current_name(self.relative_margins).keys()):
            got = f"{', '.join(both)} also in relative_margins"
            yield ConfigError(f"{where}.margins", got, "one margin per measure", "remove one of them")
        if not self.margins and not self.relative_margins:
            wanted = "an allowed loss for at least one measure"
            yield ConfigError(
                f"{where}.margins", "none, so nothing would decide", wanted, f"+{where}.margins.fact=0.05"
            )
        if not inputs.get("candidates"):
            wanted, fix = "at least one model to compare with the baseline", f"{where}.inputs.candidates=[<step>]"
            yield ConfigError(f"{where}.inputs.candidates", "none", wanted, fix)
        yield from self._explaining_problems(where, inputs.get("candidates", ()))
        yield from self._round_problems(where, inputs.get("scores", ()), upstream)
        compared = [name for port in ("baseline", "candidates") for name in inputs.get(port, ())]
        for step in inputs.get("scores", ()):
            if step not in upstream or "candidates" not in upstream[step].technique.spec.ports:
                continue
            if (own := upstream[step].inputs.get("baseline")) != inputs.get("baseline"):
                where_, fix = f"steps.{step}.inputs.baseline", f"the same as {where}.inputs.baseline"
                yield ConfigError(where_, ", ".join(own or ("none",)), ", ".join(inputs.get("baseline", ())), fix)
            measured = {name for port in ("baseline", "candidates") for name in upstream[step].inputs.get(port, ())}
            if absent := [name for name in compared if name not in measured]:
                got = f"{', '.join(absent)} not measured, which {where} compares"
                wanted, fix = "all models of the verdict", f"add them to steps.{step}.inputs.candidates"
                yield ConfigError(f"steps.{step}.inputs", got, wanted, fix)

    def find_shortages(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], items: Mapping[str, Items], complete: bool
    ) -> ItemFindings:
        """Return what these items can decide, with an error or a warning where they cannot."""
        alpha = self._alpha(len(set(inputs.get("candidates", ())).difference(self.explains)))
        relative = by_current_name(self.relative_margins)
        planned = Planned(self.discordance, alpha, self.power, frozenset(relative), self.mode)
        found = shortages(where, relative | by_current_name(self.margins), items, complete, planned)
        found.notes.extend(f"{where}: {note}" for note in self._renamed())
        return found

    def _explaining_problems(self, where: str, candidates: Sequence[str]) -> Iterator[ConfigError]:
        """Yield names in `explains` that are no candidates, and verdicts that could ship nothing."""
        if unknown := [name for name in self.explains if name not in candidates]:
            got, wanted = f"{', '.join(unknown)}, not in inputs.candidates", f"among {', '.join(candidates) or 'none'}"
            fix = f"{where}.explains=[], or add it to {where}.inputs.candidates"
            yield ConfigError(f"{where}.explains", got, wanted, fix)
        elif candidates and set(candidates) <= set(self.explains):
            wanted = "at least one candidate that may ship"
            yield ConfigError(
                f"{where}.explains", "all candidates, so nothing could ship", wanted, f"{where}.explains=[]"
            )

    def _round_problems(
        self, where: str, steps: Sequence[str], upstream: Mapping[str, Upstream]
    ) -> Iterator[ConfigError]:
        """Yield differences from steps that ask in rounds for this verdict."""
        for step in steps:
            technique = upstream[step].technique if step in upstream else None
            if isinstance(technique, AsksInRounds):
                yield from technique.rounds.problems(where, step, self._rates(), self.mode, technique.measurable())

    def _rates(self) -> dict[str, Any]:
        """Settings that a step which asks in rounds repeats."""
        return {
            "margins": by_current_name(self.margins), "relative_margins": by_current_name(self.relative_margins), "alpha": self.alpha,
            "discordance": self.discordance, "familywise": self.familywise,
        }  # fmt: skip

    def _renamed(self) -> list[str]:
        """Return a note for each margin under an earlier name of its measure."""
        return [
            f"margin of {name}: the measure is now called {RENAMED[name]}."
            for name in (*self.margins, *self.relative_margins)
            if name in RENAMED
        ]

    def _alpha(self, candidates: int) -> float:
        """Error probability of one candidate."""
        return self.alpha / candidates if self.familywise is True and candidates else self.alpha

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Compare all candidates; write verdict.json, items.jsonl and metrics.json.

        Raises ConfigError for a margin on a measure that no step took, DataError for inconsistent scores.
        """
        parents = {name.removeprefix("models.") for name in self.explains}
        models = [replace(one, role="parent") if one.name in parents else one for one in list_models(inputs)]
        scores = [(artifact.name, read_scores(artifact.path)) for artifact in inputs.many("scores")]
        for step, found in scores:
            if self.mode == "fixed" and found.summary.asking:
                got = f"fixed, but step {step} stopped asking when its evidence sufficed"
                raise ConfigError("mode", got, "adaptive for scores that were asked in rounds", "mode: adaptive")
        evidence = gather_evidence(scores)
        gates = self._gates(evidence)
        check_baseline(evidence, models[0].name)
        verdict = self._decide(models, inputs, evidence, gates, run)
        (out / "items.jsonl").write_text(
            "".join(item.model_dump_json() + "\n" for item in evidence.items), encoding="utf-8"
        )
        (out / "verdict.json").write_text(verdict.model_dump_json(indent=1), encoding="utf-8")
        (out / "metrics.json").write_text(json.dumps(nested_metrics(verdict), indent=1), encoding="utf-8")
        return flat_metrics(verdict)

    def _gates(self, evidence: Evidence) -> dict[str, Gate]:
        absolute, relative = by_current_name(self.margins), by_current_name(self.relative_margins)
        unknown = [name for name in (*absolute, *relative) if name not in evidence.measures]
        if unknown:
            raise ConfigError(
                "margins", f"no step measured {', '.join(unknown)}", ", ".join(evidence.measures), "correct the name, or add the step that measures it"
            )  # fmt: skip
        return {
            name: Gate(
                measure=measure, step=step, margin=absolute.get(name, relative.get(name)), relative=name in relative
            )
            for name, (step, measure) in evidence.measures.items()
        }

    def _decide(
        self,
        models: Sequence[ModelUnderTest],
        inputs: Inputs,
        evidence: Evidence,
        gates: Mapping[str, Gate],
        run: StepRun,
    ) -> Verdict:
        baseline = models[0].name
        candidates = [model.name for model in models if model.role == "candidate"]
        alpha = self._alpha(len(candidates))
        planned = self.discordance if self.mode == "adaptive" else None
        rules = Rules(alpha, self.power, self.resamples, run.seed, planned)
        gated = frozenset(name for name, gate in gates.items() if gate.margin is not None)
        described = describe_models(models, inputs, evidence, self.slices.by, gated, run.seed)
        entries = with_costs(described, baseline, quality_measures(gates), self.prices)
        compared = [model.name for model in models if model.role in ("candidate", "parent")]
        comparisons = {name: self._compare(baseline, name, evidence, gates, rules) for name in compared}
        proposed = {name: comparisons[name] for name in candidates}
        if self.familywise == "fdr":
            proposed = confirm_together(proposed, self.alpha)
        shipped = choose_shipped(proposed, {name: entries[name].size_bytes for name in proposed})
        cliffs = find_cliffs(baseline, entries, proposed, gates)
        items = {name: count_test_items(gate.measure, evidence.items_of(name)) for name, gate in gates.items()}
        counts = {name: own.count for name, own in items.items()}
        detectable = self._detectable(items, gates, alpha, proposed)
        return Verdict(
            baseline=baseline, reference=next((model.name for model in models if model.role == "reference"), None),
            decision=overall_decision(proposed), shipped=shipped, gates=dict(gates), mode=self.mode, alpha=alpha, power=self.power,
            test=TestSplit(items=counts, minimum_detectable=detectable), models=entries, comparisons=comparisons | proposed,
            noise=self._noise(baseline, evidence, gates), cliffs=cliffs,
            flips=[flip for name in compared for measure, gate in gates.items() if gate.margin is not None
                   for flip in list_flips(gate.measure, evidence.items_of(measure), baseline, name)],
            machine=evidence.machine(), versions={**evidence.versions, **{name: version(name) for name in self.spec.libraries}},
            notes=[*self._renamed(), *power_notes(items, gates, detectable, self.discordance, self.power),
                   *slice_notes(self.slices, evidence, gates), *several_notes(candidates, alpha, bool(self.familywise)),
                   *mode_notes(self.mode, alpha, proposed), *cliff_notes(cliffs, entries, gates), *evidence.notes],
        )  # fmt: skip

    def _detectable(
        self, items: Mapping[str, Items], gates: Mapping[str, Gate], alpha: float, comparisons: Mapping[str, Comparison]
    ) -> dict[str, float]:
        """Smallest margin that an equal candidate passes with the planned power, per measure.

        An adaptive verdict has none of measures that are decided for every candidate: their items sufficed.
        """
        planned = Planned(self.discordance, alpha, self.power, mode=self.mode)
        return {
            name: planned.smallest(own.independent)
            for name, own in items.items()
            if own.count and own.binary and gates[name].margin is not None
            if self.mode == "fixed" or is_open(name, comparisons)
        }

    def _compare(
        self, baseline: str, candidate: str, evidence: Evidence, gates: Mapping[str, Gate], rules: Rules
    ) -> Comparison:
        found, failures = {}, evidence.failures(candidate)
        for measure, gate in gates.items():
            if gate.step in failures or candidate not in evidence.models[gate.step]:
                continue
            pairs = self._pairs(measure, gate, evidence.items_of(measure), evidence, (baseline, candidate))
            if pairs.baseline:
                found[measure] = compare_measure(pairs, gate, rules)
        measures = holm_correct(found)
        checked = self._slices(baseline, candidate, evidence, {name: gates[name] for name in found}, rules)
        changed = {name: found.flip_rate for name, found in measures.items() if self._changed(gates[name], found)}
        decision, reasons = candidate_decision(measures, checked, gates, failures, changed)
        return Comparison(decision=decision, reasons=reasons, measures=measures, slices=checked)

    def _pairs(
        self, measure: str, gate: Gate, items: Sequence[ItemScore], evidence: Evidence, models: tuple[str, str]
    ) -> Pairs:
        """Return the paired items of baseline and candidate.

        In adaptive mode the candidate may have been asked fewer.
        """
        return pair_items(gate.measure, items, *models, self.mode == "adaptive", evidence.largest.get(measure, 0.0))

    def _changed(self, gate: Gate, found: MeasureComparison) -> bool:
        """Return True if the flip rate is proven to exceed `max_flips`."""
        flips = found.to_wrong + found.to_right
        return (
            gate.margin is not None
            and gate.measure.binary
            and wilson(flips, found.n, 2 * self.alpha).low > self.max_flips
        )

    def _slices(
        self, baseline: str, candidate: str, evidence: Evidence, gates: Mapping[str, Gate], rules: Rules
    ) -> list[SliceComparison]:
        """Compare every large enough slice of the deciding measures."""
        large = [
            (dimension, value, name, pairs)
            for name, gate in gates.items()
            if gate.margin is not None
            for dimension, value, members in slices_of(evidence.items_of(name), self.slices.by)
            if len((pairs := self._pairs(name, gate, members, evidence, (baseline, candidate))).baseline)
            >= self.slices.min_items
        ]
        found = [compare_slice(*one, self.slices.margin, rules, len(large)) for one in large]
        return correct_slices(found, self.alpha)

    def _noise(self, baseline: str, evidence: Evidence, gates: Mapping[str, Gate]) -> dict[str, list[NoiseFloor]]:
        found: dict[str, list[NoiseFloor]] = {}
        for name, gate in gates.items():
            repeats = [
                model
                for model, measured in evidence.models[gate.step].items()
                if measured.role == "repeat" and not measured.failure
            ]
            floors = [
                noise_floor(pairs, model)
                for model in repeats
                if (pairs := pair_items(gate.measure, evidence.items_of(name), baseline, model)).baseline
            ]
            if floors:
                found[name] = floors
        return found


def count_test_items(measure: Measure, items: Sequence[ItemScore]) -> Items:
    """Return the number of a measure's items, and of independent ones that they are worth."""
    return Items(len(items), measure.binary, groups=worth_of(item.cluster for item in items))
