"""Cuts of a model, and the exact number of parameters after each (pure Python)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from tasks.prune.selection.copying import HEAD_NORMS, axes_of, ending_of
from tasks.prune.selection.shape import Shape
from tasks.shared.model.layout import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENTRY_BYTES = 128
"""Most bytes of a tensor's entry in the header of a safetensors file, besides its name."""


@dataclass(frozen=True)
class Cut:
    """Layers that go, and the sizes that the others keep.

    dropped: indices of layers, ascending.
    shape: sizes; its number of layers is that of the whole model.
    """

    dropped: tuple[int, ...]
    shape: Shape

    @property
    def kept(self) -> list[int]:
        """Indices of the layers that stay."""
        return [layer for layer in range(self.shape.layers) if layer not in self.dropped]

    @property
    def result(self) -> Shape:
        """Sizes of the model that remains."""
        return replace(self.shape, layers=len(self.kept))

    def kinds(self, before: Shape) -> tuple[str, ...]:
        """Return the kinds of units of which something goes: layers, neurons, heads.

        before: sizes of the whole model.
        """
        after = self.shape
        gone = {
            "layers": bool(self.dropped),
            "neurons": after.intermediate < before.intermediate,
            "heads": after.heads < before.heads,
        }
        return tuple(kind for kind, some in gone.items() if some)


@dataclass(frozen=True)
class Parameters:
    """Shapes of a model's weights, from which the number of parameters after a cut follows.

    before: sizes of the whole model.
    outer: parameters outside the layers; shared ones count once.
    layers: shape of each weight, by its name within the layer.
    header: most bytes that a safetensors file of the model has besides the weights.
    """

    before: Shape
    outer: int
    layers: tuple[Mapping[str, tuple[int, ...]], ...]
    header: int = 0

    @classmethod
    def of(cls, model: "PreTrainedModel", before: Shape) -> "Parameters":
        """Read the shapes of a model's weights.

        before: its sizes.
        """
        layers = tuple(
            {name: tuple(weight.shape) for name, weight in layer.named_parameters()} for layer in decoder_layers(model)
        )
        inner = sum(prod(shape) for layer in layers for shape in layer.values())
        names: Collection[str] = dict[str, Any](model.state_dict()).keys()
        header = ENTRY_BYTES * (1 + len(names)) + sum(map(len, names))
        return cls(before, sum(weight.numel() for weight in model.parameters()) - inner, layers, header)

    @property
    def total(self) -> int:
        """Parameters of the whole model."""
        return self.after(Cut((), self.before))

    def after(self, cut: Cut) -> int:
        """Return the number of parameters of the model that remains."""
        inner = sum(
            left_of(shape, name, self.before, cut.shape)
            for layer in cut.kept
            for name, shape in self.layers[layer].items()
        )
        return self.outer + inner


def left_of(shape: Sequence[int], name: str, before: Shape, after: Shape) -> int:
    """Return the number of values of a layer's weight that a cut leaves.

    shape: of the weight.  name: of the weight, which tells its axes.  before, after: sizes of the model.
    """
    if ending_of(name) in HEAD_NORMS and shape[0] == before.head_dim:
        return prod(shape)
    parts = {
        "heads": (after.heads, before.heads), "kv_heads": (after.kv_heads, before.kv_heads),
        "neurons": (after.intermediate, before.intermediate), "gates": (after.intermediate, before.intermediate),
    }  # fmt: skip
    axes = axes_of(name) or ("",) * len(shape)
    sizes = [(size, *parts.get(axis, (1, 1))) for size, axis in zip(shape, axes, strict=True)]
    return prod(size * new // old for size, new, old in sizes)
