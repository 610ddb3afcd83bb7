"""Test items of a plan's measures, and the decisions that they cannot support."""

from collections.abc import Mapping

from flows.planning.estimate import Estimate
from flows.planning.session import Session
from flows.planning.status import Status
from flows.planning.steps import Step
from tasks.shared.errors import StillroomError
from tasks.shared.items import CountsItems, ItemFindings, Items, ItemSources, NeedsItems, PreviewsRows, RowSample
from tasks.shared.technique import Kind


def check_items(session: Session, status: Mapping[str, Status], estimates: Mapping[str, Estimate]) -> ItemFindings:
    """Return what the items of every unfinished step can decide.

    session: whose status was found, so that finished steps have a place.
    A corpus that exists is counted.  The items of one that does not are bounded by the rows of the user's files, or by their forecast.
    """
    counted: dict[str, Mapping[str, Items] | None] = {}
    samples: dict[str, RowSample] = {}
    found = ItemFindings()
    for step in session.plan.steps:
        technique = step.technique
        read = [counted[name] for name in step.needs if name in counted]
        merged = {name: items for own in read if own is not None for name, items in own.items()}
        if isinstance(technique, NeedsItems) and not status[step.name].done:
            own = technique.find_shortages(f"steps.{step.name}", step.inputs, merged, complete=None not in read)
            found.decidable.extend(own.decidable)
            found.notes.extend(own.notes)
            found.warnings.extend(own.warnings)
            found.errors.extend(own.errors)
        elif step.kind is Kind.SCORES:
            counted[step.name] = _count(session, step, status, estimates, merged, samples, found)
        elif isinstance(technique, PreviewsRows) and not status[step.name].done:
            source = next((samples[name] for name in step.needs if name in samples), None)
            try:
                if sample := technique.preview_rows(source):
                    samples[step.name] = sample
            except StillroomError as error:
                found.errors.append(error)
    return found


def _count(
    session: Session,
    step: Step,
    status: Mapping[str, Status],
    estimates: Mapping[str, Estimate],
    merged: Mapping[str, Items],
    samples: Mapping[str, RowSample],
    found: ItemFindings,
) -> Mapping[str, Items] | None:
    """Items of one step by measure; None for a step that cannot count them."""
    if not isinstance(step.technique, CountsItems):
        return None
    corpora = [name for name in step.needs if name in status and session.plan.step(name).kind is Kind.CORPUS]
    known = [session.place(name).out for name in corpora if status[name].done]
    sample = next((samples[name] for name in corpora if name in samples), None)
    sources = ItemSources(known[0] if known else None, estimates[step.name].rows.test, merged, sample)
    try:
        return step.technique.count_items(sources)
    except StillroomError as error:
        found.errors.append(error)
        return None
