"""Sensitivity of groups of tensors to GGUF types: KL with only this group rounded.

Source: ZeroQ, Cai et al. 2020, arXiv 2001.00281, which sums the divergences of layers as well.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tasks.shared.errors import TechniqueError
from tasks.shared.gguf.blocks import round_weights
from tasks.shared.gguf.places import OUTER, ROLES, VOCABULARY_NAMES, Place, place_of
from tasks.shared.gguf.types import PlannedTensor
from tasks.shared.gguf.writer import FLOAT_NAMES
from tasks.shared.model.agreement import logits_of, mean_divergence
from tasks.shared.model.families import CONV1D
from tasks.shared.model.widths import DIVISORS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Group:
    """Tensors of a file that share a type.

    name: one of OUTER, or layers and role, as in "layers 0-4 down".
    places: those of its tensors.
    """

    name: str
    places: tuple[Place, ...]
    tensors: tuple[PlannedTensor, ...]

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(tensor.weights for tensor in self.tensors)

    def sizes(self, types: Iterable[str]) -> dict[str, int]:
        """Return the bytes by type, without types whose blocks do not fill every row."""
        fitting = [name for name in types if all(tensor.row % DIVISORS[name] == 0 for tensor in self.tensors)]
        return {name: sum(replace(tensor, type=name).bytes for tensor in self.tensors) for name in fitting}


def group_tensors(tensors: Sequence[PlannedTensor], sections: int) -> list[Group]:
    """Divide a file's matrices into groups: embedding, head, and roles of neighboring layers.

    sections: runs of layers, as equal in length as possible; at most one per layer.
    """
    places = {tensor.name: place_of(tensor.name) for tensor in tensors}
    total = 1 + max(layer for layer, _ in places.values())
    count = max(1, min(sections, total))
    edges = [index * total // count for index in range(count + 1)]
    runs = [range(start, end) for start, end in zip(edges, edges[1:], strict=False)]
    named: list[tuple[str, tuple[Place, ...]]] = [(role, ((-1, role),)) for role in OUTER]
    named += [(f"{_span(run)} {role}", tuple((layer, role) for layer in run)) for run in runs for role in ROLES]
    found = [Group(name, own, tuple(tensor for tensor in tensors if places[tensor.name] in own)) for name, own in named]
    return [group for group in found if group.tensors]


def _span(run: range) -> str:
    """Name a run of layers."""
    return f"layer {run[0]}" if len(run) == 1 else f"layers {run[0]}-{run[-1]}"


class Meter:
    """Measures how far a model with rounded groups is from itself.

    ids: token ids per calibration row.
    importance: column importance by weight name, with which the file's types will be fitted.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        groups: Sequence[Group],
        ids: Sequence[Sequence[int]],
        importance: Mapping[str, "Tensor"],
    ) -> None:
        """Read the calibration rows once, and find each group's matrices in the model.

        Raises TechniqueError if a group's matrices are not all in the model.
        """
        self.model, self.ids, self.importance = model, ids, importance
        self.rotated = model.config.model_type in CONV1D
        self.matrices = {group.name: matrices_of(model, group) for group in groups}
        self.logits = logits_of(model, ids)

    def divergence(self, types: Mapping[str, str]) -> float:
        """Return the mean KL divergence, in nats per token, with these groups rounded.

        types: type by name of the group; all other groups stay as they are.
        Raises TechniqueError if it is not finite.
        """
        from math import isfinite

        with self.rounded(types):
            mean = mean_divergence(self.model, self.logits, self.ids)
        if not isfinite(mean):
            raise TechniqueError(
                "model", "logits that are not finite", "finite logits", "train with a smaller learning rate"
            )
        return mean

    @contextmanager
    def rounded(self, types: Mapping[str, str]) -> Iterator[None]:
        """Round the groups' matrices in place for the duration of the block."""
        kept: list[tuple[Tensor, Tensor]] = []
        try:
            for group, name in types.items():
                for weight, matrix in self.matrices[group]:
                    kept.append((matrix, matrix.clone()))
                    matrix.copy_(self._round(weight, matrix, name))
            yield
        finally:
            for matrix, before in kept:
                matrix.copy_(before)

    def _round(self, weight: str, matrix: "Tensor", name: str) -> "Tensor":
        """Return the matrix as the file will hold it: rounded along the rows of its inputs."""
        import torch

        turned = self.rotated and not VOCABULARY_NAMES.search(weight)
        columns = self.importance.get(weight) if matrix.dim() == 2 else None
        rows = (matrix.T if turned else matrix).float().cpu().contiguous().numpy()
        found = torch.from_numpy(round_weights(rows, name, None if columns is None else columns.numpy()).copy())
        return found.T if turned else found


def matrices_of(model: "PreTrainedModel", group: Group) -> list[tuple[str, "Tensor"]]:
    """Return names and values of a group's matrices in a model.

    One of them may be several in the files.
    Raises TechniqueError if their weights are not as many as the file's.
    """
    found = [
        (name, parameter.detach())
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and not FLOAT_NAMES.search(name) and place_of(name) in group.places
    ]
    held = sum(matrix.numel() for _, matrix in found)
    if held != group.weights:
        raise TechniqueError(
            group.name,
            f"{held:,} weights in the loaded model, and {group.weights:,} in its files",
            "a family that docs/families.md lists",
            "export/gguf, which gives all matrices of the layers one type",
        )
    return found
