"""Compare models with each other, without a recipe of their own; the first is the baseline.

python -m flows.compare big/ small/ small.gguf              folders with safetensors, or .gguf files
python -m flows.compare support_bot/tuned support_bot/int4  finished steps
python -m flows.compare champion:support_bot other_run      what is champion in MLflow; what a finished run came to
python -m flows.compare A B --recipe support_bot steps.answers.limit=100

Test data, measures and margins are those of a recipe: of the models' own, or of --recipe; overrides change them.  Recipes of
your own are found in --config-dir, as by flows.compress.
Exit codes: 0 ship, 3 do not ship, 4 not enough data, 2 a message, 130 interrupted.
"""

import argparse
import logging
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows.console import exit_codes
from flows.console.logs import prepare_logging
from flows.planning.config import Settings, compose_recipe, recipe_names
from flows.planning.plan import NAME_PATTERN, build_plan
from flows.planning.steps import Plan, Step
from flows.running.child import Stopped
from tasks.shared.engines.engine import find_weights
from tasks.shared.errors import ConfigError, StillroomError
from tasks.shared.paths import user_path
from tasks.shared.store.artifacts import Place, Store
from tasks.shared.technique import Kind

log = logging.getLogger("stillroom")
DEFAULT_RECIPE = "support_bot"
CHAMPION = "champion:"
MODELS = ("baseline", "candidates", "repeats", "reference")
"""Ports of an evaluation step that name models: those of the recipe give way to the ones compared."""


@dataclass(frozen=True)
class Contestant:
    """One model to compare.  recipe: where it was made, if that is known."""

    name: str
    path: Path
    recipe: str = ""


def find_contestant(text: str, root: Path, tracking: str) -> Contestant:
    """What an argument means.  Raises ConfigError that lists the forms there are."""
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
    """A model on disk; a step's folder means what the step made.  In a recipe's folder the recipe is that one, whoever made it first."""
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
    """A step's model folder, or the one file that an export made."""
    return find_weights(out).path


def finished(store: Store, recipe: str) -> Contestant | None:
    """What a finished run came to: the model that its verdict ships, or the candidate that came nearest."""
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
                "which it ships" if verdict.shipped else "the candidate that came nearest to shipping",
            )
            return Contestant(recipe, weights_in(place.out), recipe)
    return None


def find_champion(recipe: str, root: Path, tracking: str) -> Contestant:
    """The model version that MLflow's alias names.  Raises ConfigError if there is none, or its files are gone."""
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
    """Finished models, as they can be named here."""
    found = []
    for view in store.views():
        manifest = view.read_manifest() or {}
        if manifest.get("kind") in {Kind.MODEL, Kind.ENGINE}:
            found.append(f"{view.folder.parent.name}/{view.folder.name}")
    return sorted(found)


def as_name(text: str) -> str:
    """A name that a recipe accepts."""
    name = re.sub(r"[^a-z0-9_]+", "_", text.lower()).strip("_")[:36]
    return name if re.fullmatch(NAME_PATTERN, name) else f"m_{name}"


def tell_apart(contestants: Sequence[Contestant]) -> list[Contestant]:
    """The same with names that differ: by their recipe first, by a number else."""
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


def evaluation_of(recipe: Mapping[str, Any], contestants: Sequence[Contestant]) -> dict[str, Any]:
    """The recipe's evaluation, and what it reads besides models, with these models in place of its own.

    Raises ConfigError if the recipe has no verdict, or evaluates with what only its own models are made from.
    """
    nodes = dict(recipe["steps"])
    plan = build_plan(recipe)
    verdicts = [step for step in plan.steps if step.kind is Kind.VERDICT]
    if len(verdicts) != 1:
        raise ConfigError(
            f"recipe {recipe['name']}", f"{len(verdicts)} verdicts", "one", "choose another with --recipe"
        )
    judged = [plan.step(name) for name in verdicts[0].inputs["scores"]]
    wanted = {step.name for step in (*judged, *verdicts)}
    waiting = [name for step in judged for name in _others(step)]
    while waiting:
        name = waiting.pop()
        if name in wanted or name in plan.sources:
            continue
        wanted.add(name)
        waiting += _others(plan.step(name))
    steps = {name: _with_models(nodes[name], plan.step(name), contestants) for name in nodes if name in wanted}
    steps["report"] = {
        "_target_": "tasks.report.html.Html", "title": "Comparison",
        "inputs": {"verdict": verdicts[0].name, "scores": [step.name for step in judged], "models": [f"models.{one.name}" for one in contestants]},
    }  # fmt: skip
    models = {one.name: {"path": str(one.path)} for one in contestants}
    return {"name": "compare", "seed": recipe["seed"], "models": _needed(recipe, plan, steps) | models, "steps": steps}


def _others(step: Step) -> list[str]:
    """What a step reads besides the models under test."""
    return [name for port, names in step.inputs.items() if port not in MODELS for name in names]


def _needed(recipe: Mapping[str, Any], plan: Plan, steps: Mapping[str, Any]) -> dict[str, Any]:
    """Sources of the recipe that the kept steps still read."""
    read = {name for step in steps if step != "report" for name in _others(plan.step(step))}
    return {name: node for name, node in recipe["models"].items() if f"models.{name}" in read}


def _with_models(node: Mapping[str, Any], step: Step, contestants: Sequence[Contestant]) -> dict[str, Any]:
    if step.stage != "evaluate" or "baseline" not in step.technique.ports:
        return dict(node)
    names = [f"models.{one.name}" for one in contestants]
    inputs = {port: value for port, value in node["inputs"].items() if port not in MODELS}
    return {**node, "inputs": {**inputs, "baseline": names[0], "candidates": names[1:]}}


def compare(texts: Sequence[str], recipe: str, overrides: Sequence[str], folder: Path | None = None) -> str:
    """Run a comparison and show it; returns the decision.  folder: of the user's own configuration.  Raises StillroomError."""
    from flows.console.show import show_result
    from flows.orchestration.execute import execute

    started = time.monotonic()
    own_files = [f"hydra.searchpath=[file://{folder.resolve()}]"] if folder else []
    about_runs = [item for item in overrides if item.startswith(("runtime.", "tracking."))]
    general = compose_recipe(recipe or DEFAULT_RECIPE, [*own_files, *about_runs])
    contestants = [find_contestant(text, general.runtime.folder, general.tracking.uri) for text in texts]
    named = {*recipe_names(), *(recipe_names(folder) if folder else ())}
    own = next((one.recipe for one in contestants if one.recipe in named), DEFAULT_RECIPE)
    wanted = compose_recipe(recipe or own, [*own_files, *overrides])
    contestants = tell_apart(contestants)
    log.info("baseline %s; measures and margins of %s", contestants[0].name, wanted.recipe["name"])
    settings = Settings(
        evaluation_of(wanted.recipe, contestants),
        wanted.runtime,
        replace(wanted.tracking, kind="none"),
        wanted.gate,
        dry_run=False,
    )
    execution = execute(settings, ["compare"])
    verdict = show_result(execution.run, execution.outcomes, time.monotonic() - started)
    assert verdict is not None, "a comparison has a verdict"
    return verdict.decision


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="at least two; the first is the baseline")
    parser.add_argument("--recipe", default="", help="whose test data, measures and margins to use")
    parser.add_argument(
        "--config-dir", type=Path, metavar="FOLDER", help="your own configuration, with recipe/<name>.yaml"
    )
    options = parser.parse_intermixed_args(arguments)
    overrides = [item for item in options.models if item.startswith("~") or ("=" in item and not Path(item).exists())]
    models = [item for item in options.models if item not in overrides]
    prepare_logging()
    if len(models) < 2:
        log.error(
            "models: %d given\n  wanted: at least two, the baseline first\n  fix: python -m flows.compare A B",
            len(models),
        )
        return exit_codes.USER
    try:
        return exit_codes.DECISIONS[compare(models, options.recipe, overrides, options.config_dir)]
    except StillroomError as error:
        log.error("%s", error)
        return exit_codes.USER
    except (KeyboardInterrupt, Stopped):
        log.error("interrupted; what was measured is kept, run the same command again to go on")
        return exit_codes.interrupted()


if __name__ == "__main__":
    sys.exit(main())
