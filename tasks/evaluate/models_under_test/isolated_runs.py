"""Measure one model after the other: each in a process of its own, each at most once for the same weights and questions."""

import contextlib
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tasks.evaluate.models_under_test.machine import describe_machine
from tasks.evaluate.models_under_test.model_under_test import ModelUnderTest
from tasks.shared.errors import ModelError
from tasks.shared.files import write_bytes
from tasks.shared.formats.scores import Measure, Measured, Sheet
from tasks.shared.isolation import Failure, run_isolated
from tasks.shared.progress import track
from tasks.shared.technique import StepRun

Reading = TypeVar("Reading")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workspace:
    """What a model is asked with.  scratch: a folder for this model alone, kept until the step is done."""

    scratch: Path
    threads: int
    device: str


def ask_each(
    subjects: Sequence[ModelUnderTest],
    plans: Mapping[str, Any],
    ask: Callable[[ModelUnderTest, Any, Workspace], Reading],
    form: type[Reading],
    run: StepRun,
) -> dict[str, Reading | Failure]:
    """`ask(subject, plan, workspace)` of every subject, in order, by name; what was asked before is read from the cache.

    plans: by subject's name; plain dataclasses.  form: the type of a reading, that pydantic can write and read.
    A model that is broken, cannot be loaded or run, or dies of memory, gives its Failure, and the others are asked all the same.
    Raises ModelError when that model is the baseline: nothing could be compared with it.
    """
    found: dict[str, Reading | Failure] = {}
    for subject in track(subjects, "models", len(subjects)):
        if subject.broken:
            found[subject.name] = Failure(subject.broken)
            _refuse(subject, Failure(subject.broken))
            continue
        plan = plans[subject.name]
        kept = _kept(subject, plan, form, run)
        known = _read(kept, form)
        if known is not None:
            found[subject.name] = known
            continue
        log.info("%s %s in %s", subject.role, subject.name, subject.engine)
        scratch = run.scratch / "workspaces" / subject.name.replace(" ", "_")
        scratch.mkdir(parents=True, exist_ok=True)
        reading = run_isolated(ask, subject, plan, Workspace(scratch, run.compute.threads, run.compute.device))
        if isinstance(reading, Failure):
            _refuse(subject, reading)
        else:
            _keep(kept, form, reading)
        found[subject.name] = reading
    return found


def other_batch(size: int, again: int, items: int = sys.maxsize) -> int:
    """Another batch size for each time that a model is asked again: halves of what one batch holds, and beyond one the sizes above."""
    held = min(size, items)
    return (held >> again or held + again) if again else size


def make_sheet(
    subjects: Sequence[ModelUnderTest],
    readings: Mapping[str, Any],
    measures: Mapping[str, Measure],
    run: StepRun,
    libraries: Sequence[str],
    notes: Sequence[str] = (),
) -> Sheet:
    """The sheet of a step whose readings these are; figures are added by the technique (`Measured.model_copy`)."""
    models = {
        subject.name: Measured(
            role=subject.role, engine=subject.engine, format=subject.format,
            failure=reading.reason if isinstance(reading := readings[subject.name], Failure) else "",
        )
        for subject in subjects
    }  # fmt: skip
    versions = {name: version(name) for name in libraries}
    return Sheet(
        step=run.step, measures=dict(measures), models=models, machine=describe_machine(run.compute.device), versions=versions, notes=list(notes)
    )  # fmt: skip


def _refuse(subject: ModelUnderTest, failure: Failure) -> None:
    if subject.role == "baseline":
        raise ModelError(
            f"baseline {subject.name} ({subject.weights})", failure.reason, "a model that loads and answers", "look at the step that made it"
        )  # fmt: skip
    log.warning("%s %s was not measured: %s", subject.role, subject.name, failure.reason)


def _kept(subject: ModelUnderTest, plan: Any, form: type[Any], run: StepRun) -> Path:
    """Where this reading is filed: by the content of the weights and everything that is asked."""
    asked = json.dumps(
        [form.__qualname__, subject.content, subject.engine, subject.again, TypeAdapter(type(plan)).dump_python(plan, mode="json"), run.compute.threads],
        sort_keys=True,
    )  # fmt: skip
    return (run.prediction_cache or run.scratch / "cache") / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"


def _read(file: Path, form: type[Reading]) -> Reading | None:
    with contextlib.suppress(ValidationError, OSError):  # cut off by a crash, or not there: ask
        return TypeAdapter(form).validate_json(file.read_bytes())
    return None


def _keep(file: Path, form: type[Reading], reading: Reading) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, TypeAdapter(form).dump_json(reading), sync=True)
