"""Status of each step before a run: up to date, or the reason to run."""

from collections.abc import Mapping
from dataclasses import dataclass

from flows.planning.session import Session
from flows.planning.steps import Step


@dataclass(frozen=True)
class Status:
    """Status of a step.

    done: a valid artifact exists.
    why: the reason to run, if it is known before the inputs exist.
    """

    done: bool
    why: str = ""


def find_status(session: Session) -> dict[str, Status]:
    """Status of every step, in plan order.

    Changes no artifact; the run reuses the digests taken here.
    """
    found: dict[str, Status] = {}
    for step in session.plan.steps:
        found[step.name] = _status(session, step, found)
    session.store.digests.save()
    return found


def _status(session: Session, step: Step, found: Mapping[str, Status]) -> Status:
    if waiting := [name for name in step.needs if name in found and not found[name].done]:
        return Status(False, f"after {', '.join(waiting)}")
    if session.store.is_empty():
        return Status(False, "new")  # saves reading a large model
    key = session.key(step)
    place = session.store.look_up(step.name, key)
    if place is None:
        return Status(False, session.why(step, key) or "new")
    session.places[step.name] = place
    return Status(True)
