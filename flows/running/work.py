"""Work of a step in its own process, and the job file that describes it."""

import importlib
import json
import logging
import os
import resource
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.planning.config import Runtime
from flows.planning.gpus import hold_gpu
from flows.planning.plan import build_plan
from flows.planning.session import Session, changes, describe
from flows.planning.steps import Step
from flows.running.environment import step_variables
from flows.versioning.params import tracked_recipe
from tasks.shared.errors import ConfigError, StillroomError
from tasks.shared.files import full_disk
from tasks.shared.store.artifacts import Place, disk_errors
from tasks.shared.store.keys import code_digest, code_files, module_name
from tasks.shared.store.lineage import MANIFEST
from tasks.shared.technique import Compute, StepRun

log = logging.getLogger("stillroom")
RESULT = "result.json"
"""File next to the job file: the step's message to the flow that waits for it."""


def make(session: Session, step: Step, key: str) -> bool:
    """Run the technique and publish its artifact, complete and with a manifest.

    Returns False if another run made the same artifact first; this run then waited for it.
    """
    work = session.store.work(step.name, key)
    out, scratch = work / "out", work / "scratch"
    with disk_errors(session.runtime.folder), session.store.making(step.name, key):
        if session.find(step, key) is not None:
            return False
        shutil.rmtree(out, ignore_errors=True)
        scratch.mkdir(parents=True, exist_ok=True)
        out.mkdir()
        runtime = session.runtime
        device = session.device(step)
        load_code(step.module)
        account = describe(session, step, key)
        compute = Compute(
            session.threads(step), device, session.processes(step, device), runtime.sharding, runtime.compile, runtime.checkpoint_s
        )  # fmt: skip
        predictions = session.store.prediction_cache(step.target, account["code"], account["versions"], device)
        run = StepRun(step.name, session.plan.seed_of(step), scratch, predictions, compute)
        started = time.monotonic()
        try:
            metrics = step.technique(session.inputs(step), out, run)
        except Exception as error:
            if isinstance(error, OSError) or full_disk(error) is not None:  # what is half written only takes room
                shutil.rmtree(out, ignore_errors=True)
            raise
        check_unchanged(session, step, account)
        manifest = account | {
            "output": session.store.digests.tree(out),
            "metrics": metrics,
            "duration_s": round(time.monotonic() - started, 2),
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "peak_memory_bytes": peak_memory(),
        }
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", "utf-8")
        entry = session.store.entry(step.name, key)
        session.store.publish(work, entry)
        session.places[step.name] = entry
        if not session.variant:
            session.store.show(entry, session.view(step.name))
    session.store.digests.save()
    return True


def load_code(module: str) -> None:
    """Import all code of a step, so that an edit during the run cannot mix two versions."""
    for file in code_files(module):
        if file.suffix == ".py":
            importlib.import_module(module_name(file))


def check_unchanged(session: Session, step: Step, account: Mapping[str, Any]) -> None:
    """Raise StillroomError if an input changed while the step ran.

    Edited code only causes a warning, since all of it was imported before the start.
    """
    now = describe(session, step, str(account["key"]))
    if (now["inputs"], now["files"]) != (account["inputs"], account["files"]):
        moved = ", ".join(changes(account, {**account, "inputs": now["inputs"], "files": now["files"]}))
        raise StillroomError(
            f"steps.{step.name}", f"{moved} while it ran", "unchanged inputs", "run the same command again"
        )
    if code_digest(step.module) != account["code"]:
        log.warning("the code of %s was edited while it ran; its artifact belongs to the former code", step.name)


def peak_memory() -> int:
    """Peak resident memory of this process or one of its children so far, bytes."""
    scale = 1 if sys.platform == "darwin" else 1024
    return scale * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


@dataclass(frozen=True)
class Job:
    """Input of a process that runs one step of a recipe.

    result: file for a message to the flow that waits; None without a flow.
    """

    recipe: Mapping[str, Any]
    runtime: Runtime
    variant: bool = False
    places: Mapping[str, str] = field(default_factory=dict)
    result: Path | None = None

    def open(self, step: str) -> Session:
        """Return the session, with the step's code imported and its inputs in the store.

        Raises StillroomError for an invalid recipe, an incomplete input, or code that was edited during the start.
        """
        node = (self.recipe.get("steps") or {}).get(step)
        module = str(node.get("_target_", "")).rpartition(".")[0] if isinstance(node, Mapping) else ""
        digest = code_digest(module) if module.startswith("tasks.") else ""
        session = Session(build_plan(self.recipe), self.runtime, self.variant)
        session.places = {name: Place(Path(folder)) for name, folder in self.places.items()}
        planned = session.plan.step(step)
        load_code(planned.module)
        if code_digest(planned.module) != digest:
            raise StillroomError(
                f"steps.{step}", "its code was edited while it started", "unchanged code", "run it again"
            )
        session.code[step] = digest
        if self.result is None:
            pin_inputs(session, planned)
        return session


def pin_inputs(session: Session, step: Step) -> None:
    """Use the read-only inputs in the store instead of the recipe's folder.

    A flow may replace the files in the recipe's folder at any time.  Raises ConfigError for an incomplete input.
    """
    for name in step.needs:
        manifest = session.view(name).read_manifest() if name not in session.plan.sources else None
        if manifest is None:
            continue  # a source model, or not made yet, which `Session.key` reports
        place = session.store.find(name, str(manifest.get("key")))
        if place is None:
            raise ConfigError(
                f"steps.{name}",
                "its files were changed after they were made",
                "its artifact, whole",
                f"python -m flows.stage {session.plan.recipe} {name}",
            )
        session.places[name] = place


def read_job(recipe: str, file: Path | None) -> Job:
    """Read the job that a flow wrote; without a file, a tracked recipe from params.yaml."""
    if file is None:
        return Job(tracked_recipe(recipe), Runtime())
    found = json.loads(file.read_text("utf-8"))
    return Job(found["recipe"], Runtime(**found["runtime"]), found["variant"], found["places"], Path(found["result"]))


def write_job(session: Session, folder: Path) -> Path:
    """Write a file from which a child process rebuilds this session."""
    job = folder / "job.json"
    content = {
        "recipe": session.plan.config,
        "runtime": asdict(session.runtime),
        "variant": session.variant,
        "places": {name: str(place.folder) for name, place in dict(session.places).items()},
        "result": str(folder / RESULT),
    }
    job.write_text(json.dumps(content), "utf-8")
    return job


def obtain(session: Session, name: str, verbose: bool) -> bool:
    """Find or make one step's artifact; return True if this process made it.

    verbose: log whether the step is made, and why.
    """
    step = session.plan.step(name)
    os.environ.update(step_variables(session.threads(step), os.environ))
    key = session.key(step)
    made = session.find(step, key) is None
    if made:
        if verbose and (reason := session.why(step, key)):
            log.info("%s is made again: %s", name, reason)
        with hold_gpu(session.gpus(step)):
            made = make(session, step, key)
    elif verbose:
        log.info("%s: unchanged", name)
    session.store.digests.save()
    return made
