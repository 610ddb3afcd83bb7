"""Order and concurrency of steps: inputs first, branches in parallel within a budget."""

import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flows.planning.steps import Step


@dataclass(frozen=True)
class Budget:
    """Limits of the steps that run at the same time; a single step may always run.

    steps: number of steps.
    memory: sum of their forecasts, bytes.
    """

    steps: int
    memory: float


@dataclass(frozen=True)
class Ended:
    """End of a step, as reported by its worker.

    good: it left an artifact.
    stop: no other step may start.
    """

    step: str
    good: bool
    stop: bool = False


def run_graph(
    steps: Sequence[Step],
    memory: Mapping[str, float],
    budget: Budget,
    start: Callable[[Step], None],
    ended: "queue.Queue[Ended]",
) -> list[str]:
    """Start each step once its inputs exist, and return when no step runs any more.

    memory: forecast by step, bytes.
    start: begins a step elsewhere and returns at once; its end comes through `ended`.
    Returns the names of the steps that were never started: those that need a failed step.  Other branches go on.
    """
    own = {step.name for step in steps}
    waiting = list(steps)
    running: dict[str, Step] = {}
    made: set[str] = set()
    stopped = False
    while True:
        for step in list(waiting):
            ready = all(name in made for name in step.needs if name in own)
            if ready and not stopped and fits(step, running, memory, budget):
                waiting.remove(step)
                running[step.name] = step
                start(step)
        if not running:
            return [step.name for step in waiting]
        end = ended.get()
        del running[end.step]
        stopped = stopped or end.stop
        if end.good:
            made.add(end.step)


def fits(step: Step, running: Mapping[str, Step], memory: Mapping[str, float], budget: Budget) -> bool:
    """Return True if a step may start: a free slot, enough memory, no exclusive step running."""
    if not running:
        return True
    if step.exclusive or any(other.exclusive for other in running.values()) or len(running) >= budget.steps:
        return False
    return sum(memory[name] for name in [step.name, *running]) <= budget.memory
