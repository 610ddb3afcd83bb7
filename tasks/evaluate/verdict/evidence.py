"""Results of all evaluation steps of a recipe, merged by measure and by model."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tasks.shared.errors import ConfigError, DataError
from tasks.shared.formats.records import Figure, Machine
from tasks.shared.formats.scores import ItemScore, Measure, ModelSummary, Scores

SPEED = "tokens_per_second"


@dataclass(frozen=True)
class Evidence:
    """Scores of several steps.

    measures: by name, with the step that took it.  models: by step, then by name.  machines: by step.
    largest: weight of the heaviest group that a step which asks in rounds may bring, by measure.
    """

    measures: Mapping[str, tuple[str, Measure]]
    models: Mapping[str, Mapping[str, ModelSummary]]
    machines: Mapping[str, Machine]
    items: Sequence[ItemScore]
    versions: Mapping[str, str]
    notes: Sequence[str]
    largest: Mapping[str, float]
    _by_measure: dict[str, list[ItemScore]] = field(default_factory=dict)

    def items_of(self, measure: str) -> Sequence[ItemScore]:
        """Return the items of one measure."""
        if not self._by_measure:
            for item in self.items:
                self._by_measure.setdefault(item.measure, []).append(item)
        return self._by_measure.get(measure, [])

    def failures(self, model: str) -> dict[str, str]:
        """Return the reasons why a model has no values, by step."""
        return {
            step: found[model].failure for step, found in self.models.items() if model in found and found[model].failure
        }

    def engines(self, model: str, measures: Collection[str]) -> str:
        """Return the engines behind a model's values of these measures, or else of all measures."""
        steps = {step for name, (step, _) in self.measures.items() if name in measures}
        known = {step: found[model].engine for step, found in self.models.items() if model in found}
        chosen = [engine for step, engine in known.items() if step in steps] or list(known.values())
        return " and ".join(dict.fromkeys(chosen))

    def speed_engine(self, model: str) -> str:
        """Return the engine in which the model's speed was timed; empty if it was not timed."""
        owners = (found[model] for found in self.models.values() if model in found)
        return next((measured.engine for measured in owners if SPEED in measured.figures), "")

    def machine(self) -> Machine:
        """Return the machine that timed speeds, or the first step's machine without timings."""
        timed = [step for step, found in self.models.items() if any(SPEED in model.figures for model in found.values())]
        return self.machines[next(iter([*timed, *self.machines]))]

    def figures(self, model: str) -> dict[str, Figure]:
        """Return a model's figures from all steps."""
        return {
            name: figure
            for found in self.models.values()
            if model in found
            for name, figure in found[model].figures.items()
        }

    def names(self) -> list[str]:
        """Return the name of every model that any step evaluated."""
        return list(dict.fromkeys(name for found in self.models.values() for name in found))


def gather_evidence(step_scores: Sequence[tuple[str, Scores]]) -> Evidence:
    """Merge the scores of several steps.

    step_scores: (step, scores).  Raises DataError for a measure, or a figure of one model, that two steps have, and for steps with
    different baselines.
    """
    measures: dict[str, tuple[str, Measure]] = {}
    for step, scores in step_scores:
        for name, measure in scores.summary.measures.items():
            if name in measures:
                raise DataError(
                    f"steps.{step}", f"measure {name!r}, which step {measures[name][0]} also has", "each measure from one step",
                    "measure it once, or leave one of these steps out of the verdict's scores",
                )  # fmt: skip
            measures[name] = (step, measure)
    baselines = {
        step: next((name for name, model in scores.summary.models.items() if model.role == "baseline"), "")
        for step, scores in step_scores
    }
    if len(set(baselines.values())) > 1:
        raise DataError(
            "scores", "; ".join(f"{step} has the baseline {name}" for step, name in baselines.items()), "one baseline for all steps"
        )  # fmt: skip
    _refuse_double_figures(step_scores)
    several = len(step_scores) > 1
    machines = {step: scores.summary.machine for step, scores in step_scores}
    return Evidence(
        measures=measures,
        models={step: scores.summary.models for step, scores in step_scores},
        machines=machines,
        items=[item for _, scores in step_scores for item in scores.items],
        versions={name: number for _, scores in step_scores for name, number in scores.summary.versions.items()},
        notes=[
            *_machine_notes(machines),
            *(f"{step}: {note}" if several else note for step, scores in step_scores for note in scores.summary.notes),
        ],
        largest={
            name: weight
            for _, scores in step_scores
            if scores.summary.asking
            for name, weight in scores.summary.asking.largest.items()
        },
    )


def _refuse_double_figures(step_scores: Sequence[tuple[str, Scores]]) -> None:
    """Raise DataError if two steps have the same figure of one model.

    Otherwise the later step would win silently.
    """
    owners: dict[tuple[str, str], str] = {}
    for step, scores in step_scores:
        for model, measured in scores.summary.models.items():
            for name in measured.figures:
                first = owners.setdefault((model, name), step)
                if first != step:
                    raise DataError(
                        f"steps.{step}", f"figure {name!r} of {model}, which step {first} also has", "each figure from one step",
                        "leave one of these steps out of the verdict's scores (a second evaluate/perplexity: give it a prefix)",
                    )  # fmt: skip


def _machine_notes(machines: Mapping[str, Machine]) -> list[str]:
    """Return a note if the steps ran on different machines."""
    if len(set(machines.values())) < 2:
        return []
    machine_texts = [
        f"{step} on {machine.cpu}, {machine.cores} cores, {machine.memory_bytes / 1e9:.3g} GB"
        + (f", {machine.accelerator}" if machine.accelerator else "")
        + f", {machine.platform}"
        for step, machine in machines.items()
    ]
    return [f"The steps did not run on the same machine: {'; '.join(machine_texts)}."]


def check_baseline(evidence: Evidence, name: str) -> None:
    """Raise ConfigError unless every step used the verdict's baseline as its own.

    KL and similar measures are relative to it.
    """
    for step, found in evidence.models.items():
        roles = {model: measured.role for model, measured in found.items()}
        if roles.get(name) != "baseline":
            own = next((model for model, role in roles.items() if role == "baseline"), "none")
            raise ConfigError(f"steps.{step}.inputs.baseline", own, name, f"steps.{step}.inputs.baseline={name}")
