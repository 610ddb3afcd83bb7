"""Which model was made from which: read from the manifests that lie beside the artifacts."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks.shared.store.artifacts import MANIFEST
from tasks.shared.technique import Artifact, Kind

SOURCE = "models."
"""What a recipe puts before the name of a model that it starts from; artifacts are called without it."""
WEIGHTS = "model"
"""The port that weights come in by, where a technique takes other models as well (a teacher)."""
KINDS = {str(Kind.MODEL), str(Kind.ENGINE)}


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
    """Names and digests of the inputs that may be models, sources without their prefix."""
    inputs = manifest.get("inputs")
    ports = (
        {port: found for port, found in inputs.items() if isinstance(found, dict)} if isinstance(inputs, dict) else {}
    )
    chosen = [ports[WEIGHTS]] if WEIGHTS in ports else list(ports.values())
    return [(str(name).removeprefix(SOURCE), str(digest)) for found in chosen for name, digest in found.items()]


def _place(place: Path, name: str, digest: str) -> Path | None:
    """Where an input of the artifact at `place` lies: .store/<step>/<key> or <recipe>/<step>, as that one does."""
    for file in (place.parent / name / MANIFEST, *sorted((place.parent.parent / name).glob(f"*/{MANIFEST}"))):
        manifest = _read(file)
        if manifest.get("output") == digest and manifest.get("kind") in KINDS:
            return file.parent
    return None


def _read(file: Path) -> dict[str, Any]:
    """A manifest; empty for none, or a file that is something else."""
    with suppress(OSError, ValueError):
        found = json.loads(file.read_text("utf-8"))
        return found if isinstance(found, dict) else {}
    return {}
