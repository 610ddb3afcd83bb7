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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows.config import Runtime
from flows.params import tracked_recipe
from flows.plan import Plan, Step, build_plan
from tasks.shared.artifacts import MANIFEST, Place, Store, disk_errors
from tasks.shared.errors import ConfigError, StillroomError
from tasks.shared.keys import PROJECT, code_digest, code_files, flatten, module_name, step_key
from tasks.shared.technique import Artifact, Inputs, StepRun

log = logging.getLogger("stillroom")
RESULT = "result.json"
"""Beside the job file: a step's message to the flow that waits for it."""


@dataclass
class Session:
    """A plan being carried out: where artifacts live, and where each finished step's is."""

    plan: Plan
    runtime: Runtime
    variant: bool = False
    places: dict[str, Place] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Open the store."""
        self.store = Store(self.runtime.folder, shared_root(self.runtime.folder), trust=self.runtime.verify == "stat")

    def place(self, name: str) -> Place:
        """Where a step's artifact is read from."""
        return self.places.get(name) or self.view(name)

    def view(self, name: str) -> Place:
        """Where people and DVC find a step's artifact when the recipe runs as written."""
        return self.store.view(self.plan.recipe, name)

    def artifact(self, name: str) -> Artifact:
        """An input by its name: a source, or a finished step."""
        if name in self.plan.sources:
            return Artifact(name.removeprefix("models."), self.plan.sources[name].kind, self.plan.sources[name].path)
        return Artifact(name, self.plan.step(name).kind, self.place(name).out)

    def digest(self, name: str) -> str:
        """Content digest of an input.  Raises ModelError if a source is not what the recipe expects."""
        path = self.artifact(name).path
        if not path.exists():
            raise ConfigError(
                f"steps.{name}",
                "it has not been made yet",
                "its artifact",
                f"python -m flows.stage {self.plan.recipe} {name}",
            )
        found = self.store.digests.tree(path)
        if name in self.plan.sources:
            self.plan.sources[name].settings.verify(name, found)
        return found

    def inputs(self, step: Step) -> Inputs:
        """The step's inputs as its technique receives them."""
        return Inputs({port: tuple(self.artifact(name) for name in names) for port, names in step.inputs.items()})

    def key(self, step: Step) -> str:
        """The step's key; its inputs must be finished."""
        inputs = {port: [[name, self.digest(name)] for name in names] for port, names in step.inputs.items()}
        inputs["files"] = [[str(index), self.store.digests.tree(file)] for index, file in enumerate(step.files())]
        return step_key(step.identity(self.plan.seed), code_digest(step.module), inputs)

    def threads(self, step: Step) -> int:
        """CPU threads of a step: all cores, or its share of them if others may run beside it; the same each time it runs."""
        at_once = 1 if step.alone else min(self.runtime.steps_at_once, 1 + len(self.plan.beside(step)))
        return self.runtime.threads or max(1, self.runtime.cores // at_once)

    def find(self, step: Step, key: str) -> Place | None:
        """A valid artifact made earlier, by whatever recipe; shown in the recipe's folder if that runs as written."""
        found = self.store.find(step.name, key)
        if found is not None:
            self.places[step.name] = found
            if not self.variant:
                self.store.show(found, self.view(step.name))
        return found

    def why(self, step: Step, key: str) -> str:
        """Why a step has to run although something is there; empty when nothing is."""
        if fault := self.store.fault(self.store.entry(step.name, key), key):
            return fault
        before = self.view(step.name).read_manifest()
        if self.variant:
            return ""  # that it differs from the recipe is what the user asked for
        if before is None:
            return self.store.fault(self.view(step.name), key) or ""
        if before.get("key") == key:
            return self.store.fault(self.view(step.name), key) or "its files are gone from the store"
        return ", ".join(changes(before, describe(self, step, key)))


def shared_root(folder: Path) -> Path:
    """The root whose store is used: the checkout's own, where DVC runs an experiment in a temporary copy of it ($DVC_ROOT)."""
    home = Path(os.environ.get("DVC_ROOT") or folder).resolve()
    return home if folder == PROJECT and folder.is_relative_to(home / ".dvc" / "tmp") else folder


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


def describe(session: Session, step: Step, key: str) -> dict[str, Any]:
    """The manifest's account of what the artifact was made from."""
    return {
        "recipe": session.plan.recipe,
        "step": step.name,
        "kind": str(step.kind),
        "key": key,
        **step.identity(session.plan.seed),
        "code": code_digest(step.module),
        "inputs": {port: {name: session.digest(name) for name in names} for port, names in step.inputs.items()},
        "files": {str(file): session.store.digests.tree(file) for file in step.files()},
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two manifests' accounts, in words: the reasons why a step runs again."""
    old, new = facts(before), facts(now)
    for name in sorted(old.keys() | new.keys(), key=list(old | new).index):
        if old.get(name) != new.get(name):
            shown = name in new and not name.startswith(("its ", "input "))
            yield f"{name} {old.get(name)} -> {new.get(name)}" if shown else f"{name} changed"


def facts(account: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is in a key, by the name that a person would give it."""
    inputs = account.get("inputs", {})
    return {
        "technique": account.get("technique"),
        **flatten(account.get("settings", {})),
        "seed": account.get("seed"),
        **account.get("versions", {}),
        "its code": account.get("code"),
        "its files": sorted(account.get("files", {}).values()),
        **{f"input {name}": [port, digest] for port, names in inputs.items() for name, digest in names.items()},
    }


def pick_device(wanted: str) -> str:
    """The device that `runtime.device` means on this machine."""
    if wanted != "auto":
        return wanted
    if not any(Path("/dev").glob("nvidia[0-9]*")):  # do not pay for importing torch where there is no driver
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


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
