"""Evaluate models one after another, each in its own process, with cached predictions."""

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
from tasks.shared.engines.engine import GRAPH_ENGINES
from tasks.shared.errors import ModelError
from tasks.shared.files import write_bytes
from tasks.shared.formats.scores import EvaluationSummary, Measure, ModelSummary
from tasks.shared.isolation import Failure, run_isolated
from tasks.shared.progress import track
from tasks.shared.technique import StepRun

Result = TypeVar("Result")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resources:
    """Threads, device, and a scratch folder for one model alone, kept until the step ends."""

    scratch: Path
    threads: int
    device: str


def evaluate_each(
    models: Sequence[ModelUnderTest],
    plans: Mapping[str, Any],
    evaluate: Callable[[ModelUnderTest, Any, Resources], Result],
    result_type: type[Result],
    run: StepRun,
) -> dict[str, Result | Failure]:
    """Return `evaluate(model, plan, resources)` of every model, by name, from cache if there.

    plans: by model name; plain dataclasses.  result_type: type of the result, (de)serialized by pydantic for the cache.
    A model that cannot be inspected, loaded or run, or runs out of memory, yields a Failure, and the other models are still evaluated.
    Raises ModelError if that model is the baseline: nothing could be compared with it.
    """
    found: dict[str, Result | Failure] = {}
    for model in track(models, "models", len(models)):
        if model.failure:
            found[model.name] = Failure(model.failure)
            _refuse(model, Failure(model.failure))
            continue
        plan = plans[model.name]
        file = _cache_file(model, plan, result_type, run)
        cached = _read(file, result_type)
        if cached is not None:
            found[model.name] = cached
            continue
        log.info("%s %s in %s", model.role, model.name, model.engine)
        scratch = run.scratch / "models" / model.name.replace(" ", "_")
        scratch.mkdir(parents=True, exist_ok=True)
        result = run_isolated(evaluate, model, plan, Resources(scratch, run.compute.threads, run.compute.device))
        if isinstance(result, Failure):
            # no path of this machine in artifacts
            result = Failure(result.reason.replace(str(model.weights), model.name))
            _refuse(model, result)
        else:
            _write(file, result_type, result)
        found[model.name] = result
    return found


def repeat_batch_size(size: int, repetition: int, items: int = sys.maxsize) -> int:
    """Return a different batch size for each repetition; `size` for repetition 0.

    Halves the number of prompts that one batch really holds (at most `items`); below one prompt, continues with larger sizes.
    """
    effective = min(size, items)
    return (effective >> repetition or effective + repetition) if repetition else size


def make_summary(
    models: Sequence[ModelUnderTest],
    results: Mapping[str, Any],
    measures: Mapping[str, Measure],
    run: StepRun,
    libraries: Sequence[str],
    notes: Sequence[str] = (),
) -> EvaluationSummary:
    """Return the content of scores.json; techniques add their figures to it."""
    entries = {
        model.name: ModelSummary(
            role=model.role, engine=model.engine, format=model.format,
            failure=result.reason if isinstance(result := results[model.name], Failure) else "",
        )
        for model in models
    }  # fmt: skip
    used = {model.engine for model in models}
    optional = sorted(used.intersection(GRAPH_ENGINES.values()))  # named like their packages
    versions = {name: version(name) for name in (*libraries, *optional)}
    return EvaluationSummary(
        step=run.step, measures=dict(measures), models=entries, machine=describe_machine(run.compute.device), versions=versions, notes=list(notes)
    )  # fmt: skip


def _refuse(model: ModelUnderTest, failure: Failure) -> None:
    if model.role == "baseline":
        raise ModelError(
            f"baseline {model.name} ({model.weights})", failure.reason, "a model that loads and generates", "check the step that made it"
        )  # fmt: skip
    log.warning("%s %s was not evaluated: %s", model.role, model.name, failure.reason)


def _cache_file(model: ModelUnderTest, plan: Any, result_type: type[Any], run: StepRun) -> Path:
    """Cache path of one result, keyed by the weights, the engine and the full plan."""
    identity = json.dumps(
        [result_type.__qualname__, model.cache_id, model.engine, model.repetition, TypeAdapter(type(plan)).dump_python(plan, mode="json"), run.compute.threads],
        sort_keys=True,
    )  # fmt: skip
    return (run.prediction_cache or run.scratch / "cache") / f"{hashlib.sha256(identity.encode()).hexdigest()}.json"


def _read(file: Path, result_type: type[Result]) -> Result | None:
    with contextlib.suppress(ValidationError, OSError):  # truncated by a crash, or absent: evaluate again
        return TypeAdapter(result_type).validate_json(file.read_bytes())
    return None


def _write(file: Path, result_type: type[Result], result: Result) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, TypeAdapter(result_type).dump_json(result), sync=True)
