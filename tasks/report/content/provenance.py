"""Where every artifact of a run came from, as the manifests beside the artifacts say it."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.shared.errors import DataError
from tasks.shared.store.artifacts import Place
from tasks.shared.store.lineage import SOURCE, WEIGHTS, weight_inputs
from tasks.shared.technique import Artifact, Kind


class Manifest(BaseModel):
    """The part of a step's manifest that evidence rests on.  made: date and time in UTC, ISO 8601."""

    model_config = ConfigDict(frozen=True)
    recipe: str = ""
    step: str
    kind: Kind
    key: str
    technique: str
    settings: dict[str, Any] = Field(default_factory=dict)
    seed: int
    versions: dict[str, str] = Field(default_factory=dict)
    code: str = ""
    inputs: dict[str, dict[str, str]] = Field(default_factory=dict)
    output: str
    metrics: dict[str, float | int | str] = Field(default_factory=dict)
    duration_s: float | None = None
    peak_memory_bytes: int | None = None
    made: str = ""


class Origin(BaseModel):
    """One artifact: what it is, and its manifest; None for what no step made (a source), whose digest is all there is."""

    model_config = ConfigDict(frozen=True)
    name: str
    kind: Kind
    digest: str
    manifest: Manifest | None

    @property
    def technique(self) -> str:
        """Stage and technique as Hydra names them, such as prune/depth; empty for a source."""
        return "/".join(self.manifest.technique.split(".")[1:3]) if self.manifest else ""

    @property
    def made_from(self) -> dict[str, str]:
        """Digests of its inputs by name."""
        return (
            {}
            if self.manifest is None
            else {name: d for port in self.manifest.inputs.values() for name, d in port.items()}
        )


def read_origin(artifact: Artifact) -> Origin:
    """An artifact's origin.  Raises DataError for a manifest that is there and is not ours.

    A manifest counts only beside a step's `out`: what lies beside a user's own model is not read.
    """
    place = Place(artifact.path.parent)
    found = place.read_manifest() if artifact.path == place.out else None
    if found is None:
        return Origin(name=artifact.name, kind=artifact.kind, digest=artifact.digest, manifest=None)
    try:
        manifest = Manifest.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{place.manifest}: {'.'.join(map(str, first['loc']))}"
        raise DataError(where, first["msg"], "a step's manifest", "make the step again") from error
    return Origin(name=artifact.name, kind=artifact.kind, digest=artifact.digest or manifest.output, manifest=manifest)


def read_origins(artifacts: Iterable[Artifact]) -> dict[str, Origin]:
    """Origins by name, each once, in the order given."""
    return {artifact.name: read_origin(artifact) for artifact in artifacts}


def parent_of(origins: Mapping[str, Origin], name: str) -> str:
    """The model that a model was made from: an input with a known model's name and digest, or a source; empty when nobody knows."""
    origin = origins.get(name)
    if origin is None or origin.manifest is None:
        return ""
    for needed, digest in weight_inputs(origin.manifest.inputs):
        known = origins.get(needed)
        if needed.startswith(SOURCE) or (known and known.kind in WEIGHTS and known.digest in (digest, "")):
            return needed
    return ""


def ancestors(origins: Mapping[str, Origin], name: str) -> list[str]:
    """A model's ancestors, the nearest first; ends at a source, or where the manifests end."""
    found: list[str] = []
    while (name := parent_of(origins, name)) and name not in found:
        found.append(name)
    return found


def source_of(origins: Mapping[str, Origin], name: str) -> str:
    """The source that a model's weights come from, without its prefix (a source is its own); empty where the manifests end before it."""
    last = [name, *ancestors(origins, name)][-1]
    known = origins.get(last)
    return "" if known and known.manifest else last.removeprefix(SOURCE)


def changes_since(origins: Mapping[str, Origin], baseline: str, name: str) -> list[Origin]:
    """The steps between the baseline and a model, the earliest first; back to where the manifests end if it has other roots."""
    line = [name, *ancestors(origins, name)]
    if baseline in line:
        line = line[: line.index(baseline)]
    return [origins[step] for step in reversed(line) if step in origins and origins[step].manifest is not None]


def measured_parent(origins: Mapping[str, Origin], name: str, measured: Iterable[str]) -> str:
    """The nearest ancestor that was measured too."""
    known = set(measured)
    line = (parent.removeprefix(SOURCE) for parent in ancestors(origins, name))
    return next((parent for parent in line if parent in known), "")
