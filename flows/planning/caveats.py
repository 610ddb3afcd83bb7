"""Caveats of a plan's techniques: what a reader may expect and they do not give."""

from collections.abc import Iterator

from flows.planning.families import planned_config
from flows.planning.steps import Plan
from tasks.shared.model.widths import shaped_config
from tasks.shared.store.lineage import MAIN_PORT
from tasks.shared.technique import NotesModel


def caveat_lines(plan: Plan) -> list[str]:
    """Return a line for each caveat of a step's technique, and for each of its notes on a model."""
    found = [f"{step.name}: {step.technique.spec.caveat}" for step in plan.steps if step.technique.spec.caveat]
    return [*found, *_notes(plan)]


def _notes(plan: Plan) -> Iterator[str]:
    """Yield what techniques say of the models that they will get."""
    steps = {step.name: step for step in plan.steps}
    for step in plan.steps:
        if isinstance(step.technique, NotesModel):
            for name in step.inputs.get(MAIN_PORT, ()):
                config = planned_config(name, steps, plan.sources, read=shaped_config)
                yield from (f"{step.name}: {note}" for note in step.technique.model_notes(config))
