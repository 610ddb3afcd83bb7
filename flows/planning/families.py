"""Check of model families: a technique gets no model that it cannot handle.

The technique itself says what it refuses (`ChecksFamily`); the plan reads the configuration of the source that a model comes from, and
follows it through the steps that change it.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.planning.steps import Source, Step, technique_name
from tasks.shared.errors import ConfigError
from tasks.shared.model.families import family_config, title
from tasks.shared.store.lineage import MAIN_PORT
from tasks.shared.technique import ChangesConfig, ChecksFamily


def family_problems(step: Step, steps: Mapping[str, Step], sources: Mapping[str, Source]) -> Iterator[ConfigError]:
    """Yield an error for each input model whose family the step's technique refuses."""
    if not isinstance(step.technique, ChecksFamily):
        return
    for name in step.inputs.get(MAIN_PORT, ()):
        config = planned_config(name, steps, sources)
        refusal = step.technique.refuses(config) if config else None
        if refusal is not None:
            yield ConfigError(
                f"steps.{step.name}.inputs.{MAIN_PORT}",
                f"{name} is a {title(config)} model, and {technique_name(step)} does not take it: {refusal.reason}",
                "a model that docs/families.md lists for this technique",
                refusal.instead,
            )


def planned_config(
    name: str,
    steps: Mapping[str, Step],
    sources: Mapping[str, Source],
    seen: frozenset[str] = frozenset(),
    read: Callable[[Path], Mapping[str, Any]] = family_config,
) -> Mapping[str, Any]:
    """Return the configuration that a model will have; empty if it is unknown.

    Settings that only a run decides are left as they were, or marked as unknown by the technique.

    name: a source model or a step.
    read: reads the configuration of a source model.
    """
    if name in sources:
        return read(sources[name].path)
    step = steps.get(name)
    above = step.inputs.get(MAIN_PORT) if step is not None else None
    if step is None or not above or name in seen:
        return {}
    config = planned_config(above[0], steps, sources, seen | {name}, read)
    return step.technique.changed_config(config) if config and isinstance(step.technique, ChangesConfig) else config
