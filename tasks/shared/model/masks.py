"""Masks: weights that pruning set to zero, and the record by which later steps hold them.

A mask is the set of zeros of a matrix, so it needs no file of its own and cannot contradict the weights.  The record beside the
weights names the matrices and has a digest of where their zeros are: a step that holds a mask first checks that it is still the one
that was recorded.
"""

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.shared.errors import ModelError, TechniqueError
from tasks.shared.model.weight_files import loaded_files, read_header, read_tensors, shown
from tasks.shared.technique import Metrics

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
MASKS_FILE = "masks.json"
DROP = f"prune again, or delete {MASKS_FILE} from the folder to use the model without its masks"


class Mask(BaseModel):
    """Zeros of one matrix.

    digest: sha256 of their places, eight weights to a byte, in the order of the file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    shape: tuple[int, ...]
    zeros: int = Field(ge=0)
    digest: str


class Masks(BaseModel):
    """Masks of a model, by the name of the weight.

    pattern: "N:M" if at most N of every M consecutive inputs of an output are not zero; empty otherwise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    pattern: str = ""
    tensors: Mapping[str, Mask]

    @property
    def sparsity(self) -> float:
        """Share of zeros in these matrices."""
        weights = sum(_count(mask.shape) for mask in self.tensors.values())
        return sum(mask.zeros for mask in self.tensors.values()) / max(1, weights)


def write_masks(folder: Path, names: Collection[str], pattern: str = "") -> Masks:
    """Record the zeros of these weights of a model folder as its masks.

    Raises TechniqueError for a weight that breaks the pattern.
    """
    found: dict[str, Mask] = {}
    for name, weight in read_tensors(folder, names):
        if pattern and not follows(weight, pattern):
            raise TechniqueError(name, f"more than {pattern} weights are left in a group", f"{pattern} in every group")
        found[name] = mask_of(weight)
    masks = Masks(pattern=pattern, tensors={name: found[name] for name in sorted(found)})
    (folder / MASKS_FILE).write_text(masks.model_dump_json(), encoding="utf-8")
    return masks


def read_masks(folder: Path) -> Masks | None:
    """Return the masks of a model, or None if it has none.

    Raises ModelError if the record is damaged, or if zeros are not where it says: the model was changed since.
    """
    masks = recorded_masks(folder)
    if masks is None:
        return None
    found = {name: mask_of(weight) for name, weight in read_tensors(folder, masks.tensors)}
    changed = [name for name, mask in masks.tensors.items() if found.get(name) != mask]
    if changed:
        raise ModelError(
            str(folder / MASKS_FILE),
            f"masks of another state of the model: {len(changed)} of {len(masks.tensors)} matrices are gone, have another shape or "
            f"other zeros ({shown(changed)})",
            "the weights as they were when the masks were recorded",
            DROP,
        )
    return masks


def recorded_masks(path: Path) -> Masks | None:
    """Return a model's record of masks without a look at its weights; None if it has none.

    Raises ModelError if the record is damaged.
    """
    file = path / MASKS_FILE
    if not (path.is_dir() and file.is_file()):
        return None
    try:
        return Masks.model_validate_json(file.read_text("utf-8"))
    except (OSError, ValidationError) as error:
        raise ModelError(str(file), f"not a record of masks: {error}", "the file as pruning wrote it", DROP) from error


def carry_masks(source: Path, out: Path, origin: Callable[[str], str | None] = lambda name: name) -> Metrics:
    """Record the masks of a model made from another one, and return their figures.

    Without masks it does nothing and returns none.
    source: the model before the step.  out: the model after it.
    origin: name of the weight in `source` from which one in `out` was made; None if it is new.
    Matrices may have lost rows and columns; a pattern that this breaks is dropped, with a warning, and the zeros are kept.
    Raises TechniqueError if a matrix of the same shape lost a zero.
    """
    before = read_masks(source)
    if before is None:
        return {}
    origins = {name: origin(name) for file in loaded_files(out) for name in read_header(file)}
    names = [name for name, old in origins.items() if old in before.tensors]
    olds, refilled, pattern = {origins[name] for name in names}, list[str](), before.pattern
    for name, weight in read_tensors(out, names):
        old = origins[name]
        assert old is not None
        if tuple(weight.shape) == before.tensors[old].shape:
            (_, was), *_ = read_tensors(source, (old,))
            refilled += [name] if bool(((was == 0) & (weight != 0)).any()) else []
        elif pattern and not follows(weight, pattern):
            log.warning(
                "%s no longer has the pattern %s: rows or columns were removed; its zeros are kept", name, pattern
            )
            pattern = ""
    if refilled:
        raise TechniqueError(
            str(out), f"{len(refilled)} matrices have weights again where they were pruned ({shown(refilled)})",
            "zeros where the masks have them", "prune after this step",
        )  # fmt: skip
    if dropped := len(before.tensors.keys() - olds):
        log.info("%d of %d masked matrices are gone with their layers", dropped, len(before.tensors))
    if not names:
        return {}
    return {"masked_sparsity": round(write_masks(out, names, pattern).sparsity, 4)}


def zeros_of(model: "PreTrainedModel", masks: Masks | None) -> "dict[str, Tensor]":
    """Return where masked weights of a loaded model are zero, by name; empty without masks."""
    masked = masks.tensors if masks else {}
    return {name: weight.detach() == 0 for name, weight in model.named_parameters() if name in masked}


def hold_zeros(model: "PreTrainedModel", zeros: "Mapping[str, Tensor]") -> float:
    """Set weights to zero in place, and return the share of them that no longer were.

    zeros: as from `zeros_of`, before the weights were changed.
    """
    weights, refilled = dict(model.named_parameters()), 0
    for name, places in zeros.items():
        refilled += int((weights[name].detach() != 0)[places].sum())
        clear(weights[name].detach(), places)
    return refilled / max(1, sum(int(places.sum()) for places in zeros.values()))


def clear(weight: "Tensor", zeros: "Tensor") -> None:
    """Set weights to zero in place.

    weight: (out, in) or any shape.  zeros: (out, in), the same shape, bool.
    """
    import torch

    with torch.no_grad():
        weight.masked_fill_(zeros, 0.0)


def mask_of(weight: "Tensor") -> Mask:
    """Describe the zeros of a weight.

    weight: (out, in), as the file has it.
    """
    import numpy

    zeros = (weight == 0).cpu().numpy()
    packed = numpy.packbits(zeros.reshape(-1)).tobytes()
    return Mask(shape=tuple(weight.shape), zeros=int(zeros.sum()), digest=hashlib.sha256(packed).hexdigest())


def follows(weight: "Tensor", pattern: str) -> bool:
    """Return True if a weight has at most N of every M inputs, in whole groups.

    weight: (out, in).
    """
    keep, of = parse_pattern(pattern)
    if weight.shape[-1] % of:
        return False
    return bool(((weight != 0).unflatten(-1, (-1, of)).sum(-1) <= keep).all())


def parse_pattern(pattern: str) -> tuple[int, int]:
    """Return N and M of "N:M"."""
    keep, _, of = pattern.partition(":")
    return int(keep), int(of)


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
