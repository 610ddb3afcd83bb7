import queue
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flows.planning.config import Runtime
from flows.planning.session import Session
from flows.planning.steps import Plan
from flows.running.schedule import Budget, Ended, run_graph


@dataclass(frozen=True)
class Planned:
    name: str
    needs: tuple[str, ...] = ()
    exclusive: bool = False


DIAMOND = (
    Planned("top"),
    Planned("left", ("top",)),
    Planned("right", ("top",)),
    Planned("end", ("left", "right"), exclusive=True),
    Planned("other"),
)


def simulate(
    steps: Iterable[Planned],
    at_once: int,
    memory: Mapping[str, float] | None = None,
    budget: float = 1e9,
    bad: Iterable[str] = (),
    stop: str = "",
) -> tuple[list[frozenset[str]], list[str]]:
    """Each step ends when nothing more starts.  Returns what ran at each moment, and what was left."""
    steps = list(steps)
    ended: queue.Queue[Ended] = queue.Queue()
    running: list[str] = []
    moments: list[frozenset[str]] = []

    class Ends(queue.Queue[Ended]):
        def get(self, *_: Any, **__: Any) -> Ended:
            moments.append(frozenset(running))
            name = running.pop(0)
            return Ended(name, name not in bad, stop=name == stop)

    ended = Ends()
    weights = {step.name: 1.0 for step in steps} | dict(memory or {})
    left = run_graph(steps, weights, Budget(at_once, budget), lambda step: running.append(step.name), ended)  # type: ignore[arg-type]
    return moments, left


def test_one_at_a_time_keeps_the_plans_order() -> None:
    moments, left = simulate(DIAMOND, 1)
    assert [set(now) for now in moments] == [{"top"}, {"left"}, {"right"}, {"end"}, {"other"}] and not left


def test_branches_run_beside_each_other() -> None:
    moments, _ = simulate(DIAMOND, 2)
    assert frozenset({"left", "right"}) in moments or frozenset({"left", "other"}) in moments
    assert max(len(now) for now in moments) == 2


def test_who_measures_time_is_alone() -> None:
    moments, _ = simulate(DIAMOND, 5)
    assert frozenset({"end"}) in moments and not any("end" in now and len(now) > 1 for now in moments)


def test_memory_holds_branches_apart_but_one_may_always_run() -> None:
    moments, left = simulate(DIAMOND, 5, {"left": 9.0, "right": 9.0}, budget=8)
    assert not any({"left", "right"} <= now for now in moments) and not left


def test_a_failure_takes_along_only_what_needs_it() -> None:
    moments, left = simulate(DIAMOND, 1, bad=["left"])
    assert left == ["end"] and frozenset({"right"}) in moments and frozenset({"other"}) in moments


def test_after_a_stop_nothing_starts() -> None:
    moments, left = simulate(DIAMOND, 1, stop="top")
    assert len(moments) == 1 and left == ["left", "right", "end", "other"]


def test_steps_that_may_run_at_once_share_the_cores() -> None:
    plan = Plan({"name": "r"}, {}, DIAMOND)  # type: ignore[arg-type]
    assert {step.name: plan.concurrent_with(step) for step in plan.steps} == {
        "top": ["other"],
        "left": ["right", "other"],
        "right": ["left", "other"],
        "end": ["other"],
        "other": ["top", "left", "right"],
    }

    def threads(step: Planned, **settings: int) -> int:
        runtime = Runtime(**settings)  # type: ignore[arg-type]
        session = Session.__new__(Session)
        session.plan, session.runtime = plan, runtime
        return session.threads(step)  # type: ignore[arg-type]

    cores = Runtime().cores
    assert threads(DIAMOND[3], parallel=2) == cores, "alone: all of them"
    assert threads(DIAMOND[1], parallel=1) == cores
    assert threads(DIAMOND[1], parallel=2) == max(1, cores // 2)
    assert threads(DIAMOND[1], parallel=2, threads=3) == 3, "as the user says"
