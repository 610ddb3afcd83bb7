"""Models of a comparison, found by path, step, finished run or champion."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flows.planning.plan import NAME_PATTERN
from tasks.shared.errors import ConfigError
from tasks.shared.model.sources import user_path
from tasks.shared.store.artifacts import Place, Store
from tasks.shared.technique import Kind

log = logging.getLogger("stillroom")
CHAMPION = "champion:"


@dataclass(frozen=True)
class Contestant:
    """A model to compare.

    recipe: name of the recipe that made it; empty if unknown.
    """

    name: str
    path: Path
    recipe: str = ""


def find_contestant(text: str, root: Path, tracking: str) -> Contestant:
    """Find the model that an argument names.  Raises ConfigError with the accepted forms."""
    if text.startswith(CHAMPION):
        return find_champion(text.removeprefix(CHAMPION), root, tracking)
    path = user_path(text)
    if path.exists():
        return at_path(path.resolve(), root)
    recipe, _, step = text.strip("/").partition("/")
    store = Store(root)
    if step and (place := store.view(recipe, step)).manifest.is_file():
        return at_path(place.out, root)
    if not step and (made := finished(store, recipe)):
        return made
    raise ConfigError(
        f"model {text!r}", "no such file, folder, finished step or finished run",
        "a model folder, a .gguf file, <recipe>/<step>, <recipe>, or champion:<recipe>", "finished: " + (", ".join(known(store)) or "nothing yet"),
    )  # fmt: skip


def at_path(path: Path, root: Path) -> Contestant:
    """Return the model at a path, which may also be a step's folder.

    Its recipe is the one whose folder holds the step, even if another recipe made the artifact first.
    """
    place = Place(path.parent if path.name == "out" else path)
    manifest = place.read_manifest() or {}
    if not (place.out.is_dir() and {"step", "kind", "key"} <= manifest.keys()):
        return Contestant(as_name(path.stem if path.is_file() else path.name), path)
    if manifest["kind"] not in {Kind.MODEL, Kind.ENGINE}:
        raise ConfigError(f"model {path}", f"a {manifest['kind']}", "a model or an engine")
    shown = place.folder.parent
    recipe = (
        shown.name
        if shown.parent == Store(root).root and not shown.name.startswith(".")
        else str(manifest.get("recipe", ""))
    )
    return Contestant(as_name(str(manifest["step"])), weights_in(place.out), recipe)


def weights_in(out: Path) -> Path:
    """Return a step's model folder, or the GGUF file in it if there is exactly one."""
    files = sorted(out.glob("*.gguf")) if out.is_dir() else []
    return files[0] if len(files) == 1 else out


def finished(store: Store, recipe: str) -> Contestant | None:
    """Find the model that a finished run ships, else the candidate nearest to shipping.

    None without a verdict.
    """
    from tasks.report.words.wording import nearest_candidate
    from tasks.shared.formats.verdict import read_verdict

    for view in store.views():
        manifest = view.read_manifest() or {}
        if view.folder.parent.name != recipe or manifest.get("kind") != Kind.VERDICT:
            continue
        verdict = read_verdict(view.out / "verdict.json")
        name = verdict.shipped or nearest_candidate(verdict)
        if name and (place := store.view(recipe, name)).manifest.is_file():
            log.info(
                "%s: %s, %s",
                recipe,
                name,
                "shipped by its verdict" if verdict.shipped else "the candidate nearest to shipping",
            )
            return Contestant(recipe, weights_in(place.out), recipe)
    return None


def find_champion(recipe: str, root: Path, tracking: str) -> Contestant:
    """Find the model with MLflow's alias `champion`.

    Raises ConfigError if there is none, or if its files no longer exist.
    """
    from flows.tracking.champion import read_champion

    found = read_champion(tracking, root, recipe)
    path = Path(found.get("path", ""))
    if not found.get("path") or not path.exists():
        raise ConfigError(
            f"{CHAMPION}{recipe}",
            f"its files no longer exist: {path}",
            "the champion's files",
            "run its recipe again, or dvc pull",
        )
    return Contestant("champion", weights_in(path), recipe)


def known(store: Store) -> list[str]:
    """Finished models as <recipe>/<step>."""
    found = []
    for view in store.views():
        manifest = view.read_manifest() or {}
        if manifest.get("kind") in {Kind.MODEL, Kind.ENGINE}:
            found.append(f"{view.folder.parent.name}/{view.folder.name}")
    return sorted(found)


def as_name(text: str) -> str:
    """Convert a text to a name that a recipe accepts."""
    name = re.sub(r"[^a-z0-9_]+", "_", text.lower()).strip("_")[:36]
    return name if re.fullmatch(NAME_PATTERN, name) else f"m_{name}"


def with_distinct_names(contestants: Sequence[Contestant]) -> list[Contestant]:
    """Make the names distinct: prefix equal ones with the recipe, then append a number."""
    names = [one.name for one in contestants]
    longer = [
        replace(one, name=as_name(f"{one.recipe}_{one.name}")) if one.recipe and names.count(one.name) > 1 else one for one in contestants
    ]  # fmt: skip
    taken: set[str] = set()
    result = []
    for one in longer:
        name, number = one.name, 1
        while name in taken:
            number += 1
            name = f"{one.name}_{number}"
        taken.add(name)
        result.append(replace(one, name=name))
    return result
