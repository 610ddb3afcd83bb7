"""What all measuring steps of a recipe found, put together: by measure, by model."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tasks.shared.errors import DataError
from tasks.shared.records import Figure
from tasks.shared.scores import ItemScore, Measure, Measured, Scores


@dataclass(frozen=True)
class Evidence:
    """Scores of several steps.  measures: by name, with the step that made it.  models: by step, then by name."""

    measures: Mapping[str, tuple[str, Measure]]
    models: Mapping[str, Mapping[str, Measured]]
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

    def engine_of(self, model: str, figure: str) -> str:
        """What a figure of it was measured in; empty if it has none."""
        owners = (found[model] for found in self.models.values() if model in found)
        return next((measured.engine for measured in owners if figure in measured.figures), "")

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
    """Scores by step.  Raises DataError for a measure that two steps have, or a model that is a baseline here and a candidate there."""
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
    several = len(sheets) > 1
    return Evidence(
        measures=measures,
        models={step: scores.sheet.models for step, scores in sheets},
        items=[item for _, scores in sheets for item in scores.items],
        versions={name: number for _, scores in sheets for name, number in scores.sheet.versions.items()},
        notes=[f"{step}: {note}" if several else note for step, scores in sheets for note in scores.sheet.notes],
    )
