"""One step of a recipe, found or made in this process; the job file through which a flow asks a child for it."""

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
from tasks.shared.store.artifacts import Place, disk_errors
from tasks.shared.store.keys import code_digest, code_files, module_name
from tasks.shared.store.lineage import MANIFEST
from tasks.shared.technique import Compute, StepRun

log = logging.getLogger("stillroom")
RESULT = "result.json"
"""Beside the job file: a step's message to the flow that waits for it."""


def make(session: Session, step: Step, key: str) -> bool:
    """Run the technique and publish its artifact with a manifest.  Nothing half made is ever in place.

    Two runs that need the same artifact at once: the second waits, and takes what the first made; False then.
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
        metrics = step.technique(session.inputs(step), out, run)
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
    """Import all that the step may import later, so that an edit while it runs cannot mix two versions of the code."""
    for file in code_files(module):
        if file.suffix == ".py":
            importlib.import_module(module_name(file))


def check_unchanged(session: Session, step: Step, account: Mapping[str, Any]) -> None:
    """Raise StillroomError if an input is another one than at the start, so that nobody knows which of them was read.

    Code that was edited meanwhile is only told: all of it was imported before the start.
    """
    now = describe(session, step, str(account["key"]))
    if (now["inputs"], now["files"]) != (account["inputs"], account["files"]):
        moved = ", ".join(changes(account, {**account, "inputs": now["inputs"], "files": now["files"]}))
        raise StillroomError(
            f"steps.{step.name}", f"{moved} while it ran", "inputs that stay as they are", "run the same command again"
        )
    if code_digest(step.module) != account["code"]:
        log.warning("the code of %s was edited while it ran; what it made belongs to the code as it was", step.name)


def peak_memory() -> int:
    """Largest resident set of this process or one of its children so far, bytes."""
    scale = 1 if sys.platform == "darwin" else 1024
    return scale * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


@dataclass(frozen=True)
class Job:
    """What to do: a recipe's step under these circumstances.  result: where the flow that waits looks for a message."""

    recipe: Mapping[str, Any]
    runtime: Runtime
    variant: bool = False
    places: Mapping[str, str] = field(default_factory=dict)
    result: Path | None = None

    def open(self, step: str) -> Session:
        """The session, with the step's code imported and its inputs in the store.

        Raises StillroomError: a recipe that cannot be planned, an input that is not whole, or code that is being edited.
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
                f"steps.{step}", "its code was edited while it started", "code that stays as it is", "run it again"
            )
        session.code[step] = digest
        if self.result is None:
            pin_inputs(session, planned)
        return session


def pin_inputs(session: Session, step: Step) -> None:
    """Read inputs from the store, where nobody changes them, and not from the recipe's folder, which a flow may replace.

    Raises ConfigError for one that is not whole.
    """
    for name in step.needs:
        manifest = session.view(name).read_manifest() if name not in session.plan.sources else None
        if manifest is None:
            continue  # a model source; or not made yet, which the key says
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
    """The job that a flow wrote, or a tracked recipe as params.yaml has it."""
    if file is None:
        return Job(tracked_recipe(recipe), Runtime())
    found = json.loads(file.read_text("utf-8"))
    return Job(found["recipe"], Runtime(**found["runtime"]), found["variant"], found["places"], Path(found["result"]))


def write_job(session: Session, folder: Path) -> Path:
    """A file from which a child process rebuilds this session."""
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


def obtain(session: Session, name: str, told: bool) -> bool:
    """Find one step's artifact or make it; whether it was made here.  told: say what happens to a person."""
    step = session.plan.step(name)
    os.environ.update(step_variables(session.threads(step), os.environ))
    key = session.key(step)
    made = session.find(step, key) is None
    if made:
        if told and (reason := session.why(step, key)):
            log.info("%s is made again: %s", name, reason)
        with hold_gpu(session.gpus(step)):
            made = make(session, step, key)
    elif told:
        log.info("%s: unchanged", name)
    session.store.digests.save()
    return made
