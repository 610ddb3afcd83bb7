"""What all measuring steps of a recipe found, put together: by measure, by model."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tasks.shared.errors import DataError
from tasks.shared.formats.records import Figure, Machine
from tasks.shared.formats.scores import ItemScore, Measure, Measured, Scores

SPEED = "tokens_per_second"


@dataclass(frozen=True)
class Evidence:
    """Scores of several steps.  measures: by name, with the step that made it.  models: by step, then by name.  machines: by step."""

    measures: Mapping[str, tuple[str, Measure]]
    models: Mapping[str, Mapping[str, Measured]]
    machines: Mapping[str, Machine]
    items: Sequence[ItemScore]
    versions: Mapping[str, str]
    notes: Sequence[str]
    _by_measure: dict[str, list[ItemScore]] = field(default_factory=dict)

    def of(self, measure: str) -> Sequence[ItemScore]:
        """The items of one measure."""
        if not self._by_measure:
            for item in self.items:
                self._by_measure.setdefault(item.measure, []).append(item)
        return self._by_measure.get(measure, [])

    def failures(self, model: str) -> dict[str, str]:
        """Why a model has no values, by step."""
        return {
            step: found[model].failure for step, found in self.models.items() if model in found and found[model].failure
        }

    def engines(self, model: str, measures: Collection[str]) -> str:
        """What its values of these measures were made with; of all, if it has none of these."""
        steps = {step for name, (step, _) in self.measures.items() if name in measures}
        known = {step: found[model].engine for step, found in self.models.items() if model in found}
        chosen = [engine for step, engine in known.items() if step in steps] or list(known.values())
        return " and ".join(dict.fromkeys(chosen))

    def speed_engine(self, model: str) -> str:
        """What its speed was measured in; empty if it was not."""
        owners = (found[model] for found in self.models.values() if model in found)
        return next((measured.engine for measured in owners if SPEED in measured.figures), "")

    def machine(self) -> Machine:
        """Where speeds were measured; without speeds, where the first step ran."""
        timed = [step for step, found in self.models.items() if any(SPEED in model.figures for model in found.values())]
        return self.machines[next(iter([*timed, *self.machines]))]

    def figures(self, model: str) -> dict[str, Figure]:
        """Its figures from all steps."""
        return {
            name: figure
            for found in self.models.values()
            if model in found
            for name, figure in found[model].figures.items()
        }

    def names(self) -> list[str]:
        """Every model that any step measured."""
        return list(dict.fromkeys(name for found in self.models.values() for name in found))


def gather(sheets: Sequence[tuple[str, Scores]]) -> Evidence:
    """Scores by step.

    Raises DataError for a measure, or a figure of one model, that two steps have, and for a model that is a baseline here and a
    candidate there.
    """
    measures: dict[str, tuple[str, Measure]] = {}
    for step, scores in sheets:
        for name, measure in scores.sheet.measures.items():
            if name in measures:
                raise DataError(
                    f"steps.{step}", f"measure {name!r}, which step {measures[name][0]} has as well", "every measure from one step",
                    "measure it once, or leave one of these steps out of the verdict's scores",
                )  # fmt: skip
            measures[name] = (step, measure)
    baselines = {
        step: next((name for name, model in scores.sheet.models.items() if model.role == "baseline"), "")
        for step, scores in sheets
    }
    if len(set(baselines.values())) > 1:
        raise DataError(
            "scores", "; ".join(f"{step} has the baseline {name}" for step, name in baselines.items()), "one baseline for all of them"
        )  # fmt: skip
    _refuse_double_figures(sheets)
    several = len(sheets) > 1
    machines = {step: scores.sheet.machine for step, scores in sheets}
    return Evidence(
        measures=measures,
        models={step: scores.sheet.models for step, scores in sheets},
        machines=machines,
        items=[item for _, scores in sheets for item in scores.items],
        versions={name: number for _, scores in sheets for name, number in scores.sheet.versions.items()},
        notes=[
            *_machine_notes(machines),
            *(f"{step}: {note}" if several else note for step, scores in sheets for note in scores.sheet.notes),
        ],
    )


def _refuse_double_figures(sheets: Sequence[tuple[str, Scores]]) -> None:
    """A figure that two steps have of one model would be whichever came last."""
    owners: dict[tuple[str, str], str] = {}
    for step, scores in sheets:
        for model, measured in scores.sheet.models.items():
            for name in measured.figures:
                first = owners.setdefault((model, name), step)
                if first != step:
                    raise DataError(
                        f"steps.{step}", f"figure {name!r} of {model}, which step {first} has as well", "every figure from one step",
                        "leave one of these steps out of the verdict's scores (a second evaluate/perplexity: give it a prefix)",
                    )  # fmt: skip


def _machine_notes(machines: Mapping[str, Machine]) -> list[str]:
    """That the steps did not all run on one machine."""
    if len(set(machines.values())) < 2:
        return []
    told = [
        f"{step} on {machine.cpu}, {machine.cores} cores, {machine.memory_bytes / 1e9:.3g} GB"
        + (f", {machine.accelerator}" if machine.accelerator else "")
        + f", {machine.platform}"
        for step, machine in machines.items()
    ]
    return [f"The steps did not run on the same machine: {'; '.join(told)}."]
