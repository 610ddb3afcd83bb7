"""Origin of every artifact of a run, read from the manifests of the steps."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.shared.errors import DataError
from tasks.shared.store.artifacts import Place
from tasks.shared.store.lineage import SOURCE, weight_inputs
from tasks.shared.technique import WEIGHTS, Artifact, Kind


class Manifest(BaseModel):
    """Part of a step's manifest that is used as evidence.  made: date and time in UTC, ISO 8601."""

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
    """One artifact with its manifest.  manifest: None for a source, which no step made."""

    model_config = ConfigDict(frozen=True)
    name: str
    kind: Kind
    digest: str
    manifest: Manifest | None

    @property
    def technique(self) -> str:
        """Stage and technique by their Hydra name, such as prune/depth; empty for a source."""
        return "/".join(self.manifest.technique.split(".")[1:3]) if self.manifest else ""

    @property
    def made_from(self) -> dict[str, str]:
        """Digests of the artifact's inputs by name."""
        return (
            {}
            if self.manifest is None
            else {name: d for port in self.manifest.inputs.values() for name, d in port.items()}
        )


def read_origin(artifact: Artifact) -> Origin:
    """Read an artifact's origin.  Raises DataError for a manifest that breaks the schema.

    Only a step's output folder, `out`, has a manifest; files next to a user's own model are not read.
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
        raise DataError(where, first["msg"], "a step's manifest", "rerun the step") from error
    return Origin(name=artifact.name, kind=artifact.kind, digest=artifact.digest or manifest.output, manifest=manifest)


def read_origins(artifacts: Iterable[Artifact]) -> dict[str, Origin]:
    """Read the origins of artifacts, by name in the order given."""
    return {artifact.name: read_origin(artifact) for artifact in artifacts}


def parent_of(origins: Mapping[str, Origin], name: str) -> str:
    """Name of the model that a model was made from; empty if unknown.

    That is an input with a known model's name and digest, or a source.
    """
    origin = origins.get(name)
    if origin is None or origin.manifest is None:
        return ""
    for needed, digest in weight_inputs(origin.manifest.inputs):
        known = origins.get(needed)
        if needed.startswith(SOURCE) or (known and known.kind in WEIGHTS and known.digest in (digest, "")):
            return needed
    return ""


def ancestors(origins: Mapping[str, Origin], name: str) -> list[str]:
    """Ancestors of a model, nearest first, up to a source or to the last known manifest."""
    found: list[str] = []
    while (name := parent_of(origins, name)) and name not in found:
        found.append(name)
    return found


def source_of(origins: Mapping[str, Origin], name: str) -> str:
    """Name of the source of a model's weights, without its prefix.

    The source of a source is itself.  Empty if the manifests end before a source.
    """
    last = [name, *ancestors(origins, name)][-1]
    known = origins.get(last)
    return "" if known and known.manifest else last.removeprefix(SOURCE)


def changes_since(origins: Mapping[str, Origin], baseline: str, name: str) -> list[Origin]:
    """Steps between the baseline and a model, earliest first.

    For a model that was not made from the baseline: all steps with known manifests.
    """
    line = [name, *ancestors(origins, name)]
    if baseline in line:
        line = line[: line.index(baseline)]
    return [origins[step] for step in reversed(line) if step in origins and origins[step].manifest is not None]


def measured_parent(origins: Mapping[str, Origin], name: str, measured: Iterable[str]) -> str:
    """Nearest ancestor among the measured models; empty without one."""
    known = set(measured)
    line = (parent.removeprefix(SOURCE) for parent in ancestors(origins, name))
    return next((parent for parent in line if parent in known), "")
