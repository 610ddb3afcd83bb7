"""One step of a recipe: find it or make it.

    python -m flows.stage support_bot slim

is what dvc.yaml calls; the flow runs the same command in a child process, so that a step's memory is freed when it
ends and the step can be killed.  Settings come from params.yaml, or from --job, a file that the flow writes.
"""

import argparse
import importlib
import json
import logging
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.config import Runtime
from flows.params import tracked_recipe
from flows.plan import build_plan
from flows.session import Session, describe, pick_device
from flows.steps import Step
from tasks.shared.artifacts import MANIFEST, Place, disk_errors
from tasks.shared.errors import StillroomError
from tasks.shared.keys import code_digest, code_files, module_name
from tasks.shared.technique import StepRun

log = logging.getLogger("stillroom")
RESULT = "result.json"
"""Beside the job file: a step's message to the flow that waits for it."""


def make(session: Session, step: Step, key: str) -> Place:
    """Run the technique and publish its artifact with a manifest.  Nothing half made is ever in place.

    Two runs that need the same artifact at once: the second waits, and takes what the first made.
    """
    work = session.store.work(step.name, key)
    out, scratch = work / "out", work / "scratch"
    with disk_errors(session.runtime.folder), session.store.making(step.name, key):
        if (made := session.find(step, key)) is not None:
            return made
        shutil.rmtree(out, ignore_errors=True)
        scratch.mkdir(parents=True, exist_ok=True)
        out.mkdir()
        runtime = session.runtime
        device = pick_device(runtime.device)
        run = StepRun(step.name, session.plan.seed, scratch, session.threads(step), device, runtime.checkpoint_s)
        account = describe(session, step, key)
        load_code(step.module)
        started = time.monotonic()
        metrics = step.technique(session.inputs(step), out, run)
        check_code(step, account["code"])
        manifest = account | {
            "output": session.store.digests.tree(out),
            "metrics": metrics,
            "duration_s": round(time.monotonic() - started, 2),
            "peak_memory_bytes": peak_memory(),
        }
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", "utf-8")
        entry = session.store.entry(step.name, key)
        session.store.publish(work, entry)
        session.places[step.name] = entry
        if not session.variant:
            session.store.show(entry, session.view(step.name))
    session.store.digests.save()
    return entry


def load_code(module: str) -> None:
    """Import all that the step may import later, so that an edit while it runs cannot mix two versions of the code."""
    for file in code_files(module):
        if file.suffix == ".py":
            importlib.import_module(module_name(file))


def check_code(step: Step, digest: str) -> None:
    """Warn when the code was edited while the step ran: the artifact is that of the code as it was at the start."""
    if code_digest(step.module) != digest:
        log.warning("the code of %s was edited while it ran; what it made belongs to the code as it was", step.name)


def peak_memory() -> int:
    """Largest resident set of this process or one of its children so far, bytes."""
    scale = 1 if sys.platform == "darwin" else 1024
    return scale * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def offline_environment(threads: int) -> None:
    """Keep libraries quiet, offline unless the user said otherwise, and within the given threads."""
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": str(threads),
    }.items():
        os.environ.setdefault(name, value)


def read_job(recipe: str, job: Path | None) -> tuple[Session, Path | None]:
    """The session of a job file, or of the recipe's part of params.yaml."""
    if job is not None:
        found = json.loads(job.read_text("utf-8"))
        session = Session(build_plan(found["recipe"]), Runtime(**found["runtime"]), found["variant"])
        session.places = {name: Place(Path(folder)) for name, folder in found["places"].items()}
        return session, Path(found["result"])
    return Session(build_plan(tracked_recipe(recipe)), Runtime()), None


def write_job(session: Session, recipe: Mapping[str, Any], folder: Path) -> Path:
    """A file from which a child process rebuilds this session."""
    job = folder / "job.json"
    content = {
        "recipe": recipe,
        "runtime": asdict(session.runtime),
        "variant": session.variant,
        "places": {name: str(place.folder) for name, place in session.places.items()},
        "result": str(folder / RESULT),
    }
    job.write_text(json.dumps(content), "utf-8")
    return job


def follow_parent(parent: int) -> None:
    """End this process when the one that started it is gone (a killed flow must not leave a step running)."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line.  Exit codes: 0 done or already there, 2 a message for the user, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.stage", description="Run one step of a recipe, or find that it is done."
    )
    parser.add_argument("recipe")
    parser.add_argument("step")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, default=os.getppid(), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("stillroom", "tasks"):
        logging.getLogger(name).setLevel(logging.INFO)
    if options.job is not None:
        follow_parent(options.parent)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    result: Path | None = None
    try:
        session, result = read_job(options.recipe, options.job)
        step = session.plan.step(options.step)
        offline_environment(session.threads(step))
        key = session.key(step)
        if session.find(step, key) is None:
            if options.job is None and (reason := session.why(step, key)):
                log.info("%s is made again: %s", step.name, reason)
            make(session, step, key)
        elif options.job is None:
            log.info("%s: unchanged", step.name)
        session.store.digests.save()
    except StillroomError as error:
        return _fail(error, result)
    except KeyboardInterrupt:
        return 130
    return 0


def _fail(error: StillroomError, result: Path | None) -> int:
    """Give the message to the flow that waits for it, or print it."""
    if result is not None:
        result.write_text(json.dumps({"error": str(error), "passing": error.passing}), "utf-8")
    else:
        log.error("%s", error)
    return 2


if __name__ == "__main__":
    sys.exit(main())
