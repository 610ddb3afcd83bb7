"""Caveats of a plan's techniques: gains that a reader may expect and that they do not give."""

from flows.planning.steps import Plan


def caveat_lines(plan: Plan) -> list[str]:
    """Return a line for each step whose technique has a caveat."""
    found = {step.name: step.technique.spec.caveat for step in plan.steps}
    return [f"{name}: {caveat}" for name, caveat in found.items() if caveat]
