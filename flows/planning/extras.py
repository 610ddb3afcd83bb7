"""Check of optional packages: those that an extra installs must be there before a run."""

from collections.abc import Iterator

from flows.planning.steps import Step
from tasks.shared.errors import ConfigError
from tasks.shared.extras import extra_problem


def extra_problems(step: Step) -> Iterator[ConfigError]:
    """Yield an error if packages of the step's extra are missing."""
    spec = step.technique.spec
    if spec.extra and (problem := extra_problem(f"steps.{step.name}", spec.extra, spec.libraries)) is not None:
        yield problem
