"""Lineage of models, read from the artifacts' manifests."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks.shared.technique import WEIGHTS, Artifact

MANIFEST = "manifest.json"
"""File name of an artifact's manifest, which records how it was made."""
SOURCE = "models."
"""Prefix of the recipe's source models in recipes and manifests; artifacts have the name without it."""
MAIN_PORT = "model"
"""Port of the model that a step changes, in contrast to other models such as a teacher."""


def weight_inputs(inputs: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str]]:
    """Inputs from which a step's weights may come, as (name, digest).

    These are the inputs of the port `model`; without such a port, those of all ports.
    inputs: port -> name -> digest, as in a manifest.
    """
    chosen = [inputs[MAIN_PORT]] if MAIN_PORT in inputs else inputs.values()
    return [(name, digest) for port in chosen for name, digest in port.items()]


def made_from(artifact: Artifact, names: Mapping[str, str]) -> str:
    """Nearest of `names` that an artifact's weights come from; empty for a source or if unknown.

    names: digests by name ("" if unknown), since a model of another run may have the same name.

    The search follows weights only: a model does not come from the teacher whose answers it was trained on.  For a technique
    without a port `model`, every input model counts.  An input's manifest is the one of its name, in the store or in the same
    recipe's folder, whose output has the recorded digest; if it was deleted, the search ends there.
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
    """`weight_inputs` of a manifest, which may be malformed; sources without their prefix."""
    inputs = manifest.get("inputs")
    ports = inputs.items() if isinstance(inputs, dict) else ()
    found = weight_inputs({port: names for port, names in ports if isinstance(names, dict)})
    return [(str(name).removeprefix(SOURCE), str(digest)) for name, digest in found]


def _place(place: Path, name: str, digest: str) -> Path | None:
    """Folder of an input, found next to that of the artifact at `place`.

    Both are .store/<step>/<key> or <recipe>/<step>.
    """
    for file in (place.parent / name / MANIFEST, *sorted((place.parent.parent / name).glob(f"*/{MANIFEST}"))):
        manifest = _read(file)
        if manifest.get("output") == digest and manifest.get("kind") in WEIGHTS:
            return file.parent
    return None


def _read(file: Path) -> dict[str, Any]:
    """Read a manifest; empty if it is missing or malformed."""
    with suppress(OSError, ValueError):
        found = json.loads(file.read_text("utf-8"))
        return found if isinstance(found, dict) else {}
    return {}
