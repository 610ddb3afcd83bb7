"""Which model was made from which: read from the manifests that lie beside the artifacts."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks.shared.technique import WEIGHTS, Artifact

MANIFEST = "manifest.json"
"""File beside an artifact that says how it was made."""
SOURCE = "models."
"""Prefix of an input that the recipe started from, in a recipe and in manifests; artifacts bear the name without it."""
MAIN_PORT = "model"
"""The port by which a step takes the model that it changes, where it takes other models too (a teacher)."""


def weight_inputs(inputs: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str]]:
    """Inputs that a step's weights can come from: (name, digest) of the port `model`, or of all ports if there is no such port.

    inputs: port -> name -> digest, as in a manifest.
    """
    chosen = [inputs[MAIN_PORT]] if MAIN_PORT in inputs else inputs.values()
    return [(name, digest) for port in chosen for name, digest in port.items()]


def made_from(artifact: Artifact, names: Mapping[str, str]) -> str:
    """The nearest of `names` that the artifact's weights come from; empty for a source, or where no manifest tells.

    Follows weights only: a model is not made from the teacher whose answers it was trained on.  Of a technique without a port
    `model`, every input that is a model counts.  The manifest of an input is the one of that name, in the store or in the same
    recipe's folder, whose output has the digest that was read; one that has been cleared away ends the search on that path.
    names: with the digest that each has ("" where it is not known): a model of another run may bear the same name.
    """
    waiting, seen = [artifact.path.parent], set[Path]()
    while waiting:
        place = waiting.pop(0)
        if place in seen:
            continue
        seen.add(place)
        for name, digest in _weights(_read(place / MANIFEST)):
            if name in names and name != artifact.name and names[name] in ("", digest):
                return name
            if found := _place(place, name, digest):
                waiting.append(found)
    return ""


def _weights(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """`weight_inputs` of a manifest that may be anything; sources without their prefix."""
    inputs = manifest.get("inputs")
    ports = inputs.items() if isinstance(inputs, dict) else ()
    found = weight_inputs({port: names for port, names in ports if isinstance(names, dict)})
    return [(str(name).removeprefix(SOURCE), str(digest)) for name, digest in found]


def _place(place: Path, name: str, digest: str) -> Path | None:
    """Where an input of the artifact at `place` lies: .store/<step>/<key> or <recipe>/<step>, as that one does."""
    for file in (place.parent / name / MANIFEST, *sorted((place.parent.parent / name).glob(f"*/{MANIFEST}"))):
        manifest = _read(file)
        if manifest.get("output") == digest and manifest.get("kind") in WEIGHTS:
            return file.parent
    return None


def _read(file: Path) -> dict[str, Any]:
    """A manifest; empty for none, or a file that is something else."""
    with suppress(OSError, ValueError):
        found = json.loads(file.read_text("utf-8"))
        return found if isinstance(found, dict) else {}
    return {}
