"""Shared layers: decoder layers with the same weights, and the record that keeps them so.

No format that stock loaders read can hold a layer once for several places, so the file has the copies.  The record beside the weights
names the layers; a step that reads it first checks that they are still copies of each other.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.shared.errors import ModelError
from tasks.shared.model.weight_files import read_tensors, shown, tensors_of
from tasks.shared.technique import Metrics

if TYPE_CHECKING:
    from torch import Tensor

SHARED_FILE = "shared_layers.json"
DROP = f"share the layers again, or delete {SHARED_FILE} from the folder to use the model as one of separate layers"


class SharedLayers(BaseModel):
    """Groups of decoder layers with the same weights.

    layers: place of the decoder layers in the names of weights.
    groups: indices of the layers of each group.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    layers: str
    groups: Annotated[tuple[Annotated[tuple[int, ...], Field(min_length=2)], ...], Field(min_length=1)]

    def copies(self, names: Iterable[str]) -> list[list[str]]:
        """Return the names of each weight and its copies, that in the group's first layer first."""
        known = list(names)
        found = []
        for group in self.groups:
            begin, *others = (f"{self.layers}.{layer}." for layer in group)
            parts = [name.removeprefix(begin) for name in known if name.startswith(begin)]
            found += [[begin + part, *(other + part for other in others)] for part in parts]
        return found


def write_shared(folder: Path, shared: SharedLayers) -> None:
    """Record the shared layers of a model folder.

    Raises ModelError for layers that are no copies of each other.
    """
    (folder / SHARED_FILE).write_text(shared.model_dump_json(), encoding="utf-8")
    read_shared(folder)


def read_shared(folder: Path) -> SharedLayers | None:
    """Return the shared layers of a model, or None if it has none.

    Raises ModelError if the record is damaged, or if the layers differ: the model was changed since.
    """
    shared = recorded_shared(folder)
    if shared is None:
        return None
    copies = shared.copies(tensors_of(folder))
    wanted = [name for names in copies for name in names]
    found = {name: digest_of(weight) for name, weight in read_tensors(folder, wanted)}
    changed = [names[0] for names in copies if len({found.get(name) for name in names}) > 1]
    if changed or not copies:
        raise ModelError(
            str(folder / SHARED_FILE),
            f"shared layers of another state of the model: {len(changed)} of {len(copies)} weights are not the same in all layers of "
            f"their group ({shown(changed)})",
            "the weights as they were when the layers were shared",
            DROP,
        )
    return shared


def recorded_shared(path: Path) -> SharedLayers | None:
    """Return a model's record of shared layers without a look at its weights, or None.

    Raises ModelError if the record is damaged.
    """
    file = path / SHARED_FILE
    if not (path.is_dir() and file.is_file()):
        return None
    try:
        return SharedLayers.model_validate_json(file.read_text("utf-8"))
    except (OSError, ValidationError) as error:
        raise ModelError(
            str(file), f"not a record of shared layers: {error}", "the file as sharing wrote it", DROP
        ) from error


def carry_shared(source: Path, out: Path) -> Metrics:
    """Record the shared layers of a model that was trained from another one.

    Returns their figure.  Without shared layers it does nothing and returns none.  Raises ModelError if they are no copies of each other any more.
    """
    shared = recorded_shared(source)
    if shared is None:
        return {}
    write_shared(out, shared)
    return {"shared_layers": sum(map(len, shared.groups))}


def digest_of(weight: "Tensor") -> str:
    """Return the sha256 of a weight's bytes, in the order of a file.

    weight: (out, in) or any shape, any dtype.
    """
    import torch

    return hashlib.sha256(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()
