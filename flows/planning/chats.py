"""Notes on the chat templates of a plan's source models."""

from flows.planning.steps import Plan
from tasks.shared.model.chat_notes import chat_notes


def chat_lines(plan: Plan) -> list[str]:
    """Return a line for each limit of a chat template, for the source models that steps read."""
    used = {name for step in plan.steps for names in step.inputs.values() for name in names}
    return [line for name, source in plan.sources.items() if name in used for line in chat_notes(name, source.path)]
