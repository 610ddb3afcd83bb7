"""Session of a plan: places of its artifacts, keys of its steps, reasons to run a step."""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flows.planning.config import Runtime
from flows.planning.gpus import gpus, may_use_gpu
from flows.planning.steps import Plan, Step
from tasks.shared.cpu import processor_of
from tasks.shared.errors import ConfigError
from tasks.shared.store.artifacts import Place, Store
from tasks.shared.store.keys import PROJECT, code_digest, flatten, step_key
from tasks.shared.technique import Artifact, Inputs

log = logging.getLogger("stillroom")


@dataclass
class Session:
    """A plan during a run: the store of its artifacts, and the place of each finished step."""

    plan: Plan
    runtime: Runtime
    variant: bool = False
    places: dict[str, Place] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    """By step: digest of the code that this process has imported; later edits of the files do not change it."""

    def __post_init__(self) -> None:
        """Open the store."""
        self.store = Store(self.runtime.folder, shared_root(self.runtime.folder), trust=self.runtime.verify == "stat")

    def place(self, name: str) -> Place:
        """Place from which a step's artifact is read."""
        return self.places.get(name) or self.view(name)

    def view(self, name: str) -> Place:
        """Place in the recipe's own folder, for people and DVC, if the recipe runs as written."""
        return self.store.view(self.plan.recipe, name)

    def artifact(self, name: str) -> Artifact:
        """An input by its name: a source, or a finished step."""
        if name in self.plan.sources:
            return Artifact(name.removeprefix("models."), self.plan.sources[name].kind, self.plan.sources[name].path)
        return Artifact(name, self.plan.step(name).kind, self.place(name).out)

    def digest(self, name: str) -> str:
        """Content digest of an input.

        Raises ConfigError for a step without an artifact, and ModelError for a source that differs from what the recipe expects.
        """
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
        return Inputs(
            {
                port: tuple(replace(self.artifact(name), digest=self.digest(name)) for name in names)
                for port, names in step.inputs.items()
            }
        )

    def key(self, step: Step) -> str:
        """The step's key; its inputs must be finished."""
        inputs = {port: [[name, self.digest(name)] for name in names] for port, names in step.inputs.items()}
        files = [[str(index), self.store.digests.tree(file)] for index, file in enumerate(step.files())]
        inputs["files"] = [
            *inputs.get("files", []),
            *files,
        ]  # a port may have this name, too; input names are never numbers
        return step_key(self.identity(step), self.code_of(step), inputs)

    def identity(self, step: Step) -> dict[str, Any]:
        """The step's part of its key, with the machine where its speed decides the artifact."""
        found = step.identity(self.plan.seed_of(step))
        if not step.timed:
            return found
        device = self.device(step)
        return found | {"machine": f"{processor_of(device)}, {self.threads(step)} threads"}

    def code_of(self, step: Step) -> str:
        """Digest of the code that the step runs."""
        return self.code.get(step.name) or code_digest(step.module)

    def threads(self, step: Step) -> int:
        """CPU threads of a step: all cores, or its share if other steps may run at the same time."""
        at_once = 1 if step.exclusive else min(self.runtime.steps_at_once, 1 + len(self.plan.concurrent_with(step)))
        return self.runtime.threads or max(1, self.runtime.cores // at_once)

    def gpus(self, step: Step) -> int:
        """Number of GPUs that a step holds: one per process, 0 without GPUs."""
        if not (step.accelerated and may_use_gpu(self.runtime.device)):
            return 0
        wanted = self.runtime.processes if step.distributed else 1
        return wanted or max(1, len(gpus()))

    def device(self, step: Step) -> str:
        """Device that a step computes on; "cpu" for a step that cannot use an accelerator."""
        return pick_device(self.runtime.device) if step.accelerated else "cpu"

    def processes(self, step: Step, device: str) -> int:
        """Number of processes that share a step."""
        if not step.distributed:
            return 1
        return self.runtime.processes or (self.gpus(step) if device == "cuda" else 1)

    def find(self, step: Step, key: str) -> Place | None:
        """Find a valid artifact, also of another recipe; None if there is none.

        If the recipe runs as written, the artifact is linked in the recipe's folder.
        """
        found = self.store.find(step.name, key)
        if found is not None:
            self.places[step.name] = found
            if not self.variant:
                view = self.view(step.name)
                damaged = (view.read_manifest() or {}).get("key") == key
                if self.store.show(found, view) and damaged:
                    log.info("%s: the files in %s were changed; restored from the store", step.name, view.folder)
        return found

    def why(self, step: Step, key: str) -> str:
        """Reason why a step has to run although an artifact exists; empty if none does."""
        if fault := self.store.fault(self.store.entry(step.name, key), key):
            return fault
        before = self.view(step.name).read_manifest()
        if self.variant:
            return ""  # the user changed the recipe on purpose
        if before is None:
            return self.store.fault(self.view(step.name), key) or ""
        if before.get("key") == key:
            return self.store.fault(self.view(step.name), key) or "its files are gone from the store"
        return ", ".join(changes(before, describe(self, step, key)))


def shared_root(folder: Path) -> Path:
    """Root of the store; in DVC's temporary copy for an experiment, that of the checkout."""
    home = Path(os.environ.get("DVC_ROOT") or folder).resolve()
    return home if folder == PROJECT and folder.is_relative_to(home / ".dvc" / "tmp") else folder


def describe(session: Session, step: Step, key: str) -> dict[str, Any]:
    """Return the manifest's record of the work: settings, code, inputs and versions."""
    return {
        "recipe": session.plan.recipe,
        "step": step.name,
        "kind": str(step.kind),
        "key": key,
        **session.identity(step),
        "code": session.code_of(step),
        "inputs": {port: {name: session.digest(name) for name in names} for port, names in step.inputs.items()},
        "files": {str(file): session.store.digests.tree(file) for file in step.files()},
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield the differences between two manifests in words: the reasons to run a step again."""
    old, new = facts(before), facts(now)
    for name in sorted(old.keys() | new.keys(), key=list(old | new).index):
        if old.get(name) != new.get(name):
            shown = name in new and not name.startswith(("its ", "input "))
            yield f"{name} {old.get(name)} -> {new.get(name)}" if shown else f"{name} changed"


def facts(account: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of a key, under readable names."""
    inputs = account.get("inputs", {})
    return {
        "technique": account.get("technique"),
        **flatten(account.get("settings", {})),
        "seed": account.get("seed"),
        **account.get("versions", {}),
        "machine": account.get("machine"),
        "its code": account.get("code"),
        "its files": sorted(account.get("files", {}).values()),
        **{f"input {name}": [port, digest] for port, names in inputs.items() for name, digest in names.items()},
    }


def pick_device(wanted: str) -> str:
    """Resolve `runtime.device` to a device of this machine."""
    if wanted != "auto":
        return wanted
    if not any(Path("/dev").glob("nvidia[0-9]*")):  # avoids importing torch where there is no driver
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
