"""The models of a comparison, found by path, step, finished run or champion."""

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
    """One model to compare.  recipe: the one that made it, if known."""

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
    """The model at a path, or in the step's folder at that path.

    The recipe is the one whose folder shows the step, even if another recipe made it first.
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
    """A step's model folder, or the one file in it that an export made."""
    files = sorted(out.glob("*.gguf")) if out.is_dir() else []
    return files[0] if len(files) == 1 else out


def finished(store: Store, recipe: str) -> Contestant | None:
    """The model that a finished run ships, else the nearest candidate; None without a verdict."""
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
                "shipped by its verdict" if verdict.shipped else "the candidate that came nearest to shipping",
            )
            return Contestant(recipe, weights_in(place.out), recipe)
    return None


def find_champion(recipe: str, root: Path, tracking: str) -> Contestant:
    """The model with MLflow's alias `champion`.  Raises ConfigError if it or its files are gone."""
    from flows.tracking.champion import read_champion

    found = read_champion(tracking, root, recipe)
    path = Path(found.get("path", ""))
    if not found.get("path") or not path.exists():
        raise ConfigError(
            f"{CHAMPION}{recipe}",
            f"its files are gone: {path}",
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
    """Turn a text into a name that a recipe accepts."""
    name = re.sub(r"[^a-z0-9_]+", "_", text.lower()).strip("_")[:36]
    return name if re.fullmatch(NAME_PATTERN, name) else f"m_{name}"


def tell_apart(contestants: Sequence[Contestant]) -> list[Contestant]:
    """Make the names distinct: put the recipe in front of equal ones, then a number behind."""
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
