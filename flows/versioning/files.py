"""params.yaml and dvc.yaml, written from the tracked recipes under one lock."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from flows.planning.plan import build_plan
from flows.planning.steps import Plan
from flows.versioning.params import PARAMS, changed_settings, read_mapping, recipe_of, recipe_params, tracked_params
from flows.versioning.pipeline import dvc_yaml
from tasks.shared.errors import ConfigError, MachineError
from tasks.shared.files import write_text
from tasks.shared.store.keys import PROJECT

HEAD = "# Written by `python -m flows.sync` from conf/recipe/. Edit the recipe, not this file.\n"


DVC, LOCK = PROJECT / "dvc.yaml", PROJECT / ".dvc" / "tmp" / "stillroom.lock"


BEFORE = PROJECT / ".dvc" / "tmp" / "params.before.yaml"
"""Copy of params.yaml from before a run updated it from a recipe."""


PATIENCE_S = 600


@dataclass(frozen=True)
class Update:
    """Result of updating both files from a recipe; false if nothing changed.

    files: names of the written files.
    changes: changed settings of params.yaml, as text.
    """

    files: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.files)

    def describe(self, most: int = 8) -> str:
        """Message for the user: the changes, and how to restore the former values."""
        if not self.changes:
            return f"updated from the recipe: {', '.join(self.files)}"
        rows = [f"  {change}" for change in self.changes[:most]]
        rest = len(self.changes) - most
        return "\n".join(
            [
                "params.yaml is updated from the recipe; its values differed (an edited recipe, or `dvc exp apply`):",
                *rows,
                *([f"  and {rest} more"] if rest > 0 else []),
                f"  to keep the former values, write them into the recipe; the former file is {BEFORE.relative_to(PROJECT)}.",
                "  runtime.sync=false runs the recipe as a variant and leaves params.yaml unchanged.",
            ]
        )


@contextmanager
def locked(patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold this checkout's lock on params.yaml, dvc.yaml and dvc.lock.

    Raises MachineError after `patience_s` seconds of waiting.
    """
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(LOCK, timeout=patience_s):
            yield
    except Timeout as error:
        raise MachineError(
            str(LOCK),
            f"held by another run for more than {patience_s:.0f} s",
            "one writer at a time",
            "wait for that run",
        ) from error


def expected_files(recipes: Mapping[str, Any]) -> dict[Path, str]:
    """Expected content of both files for the params of these recipes."""
    plans = [build_plan(recipe_of(name, params)) for name, params in recipes.items()]
    dump: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 120}
    return {
        PARAMS: HEAD + yaml.safe_dump({"recipes": dict(recipes)}, **dump),
        DVC: HEAD + yaml.safe_dump(dvc_yaml(plans), **dump),
    }


def stale_files(recipes: Mapping[str, Any]) -> dict[Path, str]:
    """Return the new text of each file that is out of date."""
    expected = expected_files(recipes)
    return {path: text for path, text in expected.items() if not path.is_file() or path.read_bytes() != text.encode()}


def write_files(recipes: Mapping[str, Any]) -> list[str]:
    """Write both files and return the names of those that changed.

    Raises ConfigError if dvc.yaml holds stages that would be lost.
    """
    stale = stale_files(recipes)
    if DVC in stale:
        check_stages()
    for path, text in stale.items():
        write_text(path, text)
    return [path.name for path in stale]


def check_stages() -> None:
    """Raise ConfigError if dvc.yaml is broken or holds stages that are not ours."""
    stages = read_mapping(DVC).get("stages") if DVC.is_file() else None
    nodes = stages.items() if isinstance(stages, dict) else ()
    ours = "python -m flows.stage "
    foreign = [
        str(name) for name, node in nodes if not (isinstance(node, dict) and str(node.get("cmd")).startswith(ours))
    ]
    if foreign:
        raise ConfigError(
            "dvc.yaml",
            f"stages that flows.sync did not write: {', '.join(foreign)}",
            "only stages of tracked recipes",
            "move them into a dvc.yaml in a folder of its own; DVC reads every dvc.yaml below the project",
        )


def update_recipe(plan: Plan) -> Update:
    """Write a tracked recipe's current settings to both files, under their lock.

    Other recipes' parts do not change.  Raises ConfigError, without changing anything, if a file is broken.
    """
    with locked():
        before, now = tracked_params(), recipe_params(plan)
        changes = list(changed_settings(before[plan.recipe], now)) if plan.recipe in before else []
        former = PARAMS.read_bytes() if changes else b""
        files = write_files(before | {plan.recipe: now})
        if changes:
            BEFORE.write_bytes(former)
    return Update(tuple(files), tuple(changes))
