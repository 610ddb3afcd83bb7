"""Check of widths: a step's groups or blocks must divide the rows of its model's matrices."""

from collections.abc import Iterator, Mapping

from flows.planning.families import planned_config
from flows.planning.steps import Source, Step
from tasks.shared.errors import ConfigError, TechniqueError
from tasks.shared.model.widths import model_widths, shaped_config
from tasks.shared.store.lineage import MAIN_PORT
from tasks.shared.technique import ChecksWidths


def width_problems(step: Step, steps: Mapping[str, Step], sources: Mapping[str, Source]) -> Iterator[ConfigError]:
    """Yield an error for each input model whose widths do not fit the step's format."""
    if not isinstance(step.technique, ChecksWidths):
        return
    for name in step.inputs.get(MAIN_PORT, ()):
        widths = model_widths(planned_config(name, steps, sources, read=shaped_config))
        try:
            step.technique.check_widths(widths)
        except TechniqueError as error:
            yield ConfigError(f"steps.{step.name}.{error.where}", f"for {name}, {error.got}", error.wanted, error.fix)
