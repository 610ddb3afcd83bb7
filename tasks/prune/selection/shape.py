"""Sizes of a decoder, valid sizes of its student, and the choice of layers (pure Python)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Dimensions

Rule = Literal["uniform", "first", "last", "ends", "none"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    kv_heads: key-value heads, each shared by heads / kv_heads query heads.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Number of query heads that share a key-value head."""
        return self.heads // self.kv_heads


def shape_of(config: Any) -> Shape:
    """Read the sizes from a transformers configuration.

    Raises TechniqueError if a size is missing, or differs by layer.
    """
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    sizes = [getattr(config, name, None) for name in names]
    odd = [name for name, size in zip(names, sizes, strict=True) if not isinstance(size, int)]
    if odd:
        raise TechniqueError(
            type(config).__name__, f"no single {', '.join(odd)}", "a Llama, Mistral, Qwen or Gemma configuration", "another model, or prune/depth"
        )  # fmt: skip
    layers, hidden, intermediate, heads = (int(size) for size in sizes if size is not None)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return Shape(layers, hidden, intermediate, heads, kv_heads, getattr(config, "head_dim", None) or hidden // heads)


def planned_shape(config: Mapping[str, Any]) -> Shape | None:
    """Read the sizes from a configuration as the plan has it; None if it does not name them.

    config: a transformers configuration as a dictionary.
    """
    return shape_from(Dimensions.from_config(config)) if config.get("hidden_size") else None


def shape_from(sizes: Dimensions) -> Shape:
    """Return the sizes of a decoder from those of its matrices."""
    head = max(1, sizes.query // sizes.heads)
    return Shape(sizes.layers, sizes.width, sizes.feed_forward, sizes.heads, sizes.value // head, head)


def dimensions_of(shape: Shape, before: Dimensions) -> Dimensions:
    """Return the sizes of a decoder's matrices.

    before: sizes with the same vocabulary.
    """
    return replace(
        before, layers=shape.layers, width=shape.hidden, feed_forward=shape.intermediate, heads=shape.heads,
        query=shape.heads * shape.head_dim, value=shape.kv_heads * shape.head_dim,
    )  # fmt: skip


def student_shape(
    teacher: Shape, layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, deeper: bool = False
) -> Shape:
    """Return the student's sizes; 0 means the teacher's.

    If only one of heads and kv_heads is set, the other follows in the teacher's ratio.

    deeper: more layers than the teacher's are allowed.
    Raises TechniqueError for a size above the teacher's, or too many query heads per key-value head.
    """
    kv_heads = kv_heads or (_divided(heads, teacher) if heads else teacher.kv_heads)
    heads = heads or kv_heads * teacher.group
    wanted = Shape(
        layers or teacher.layers, hidden or teacher.hidden, intermediate or teacher.intermediate, heads, kv_heads, teacher.head_dim
    )  # fmt: skip
    limits = {
        "hidden_size": (wanted.hidden, teacher.hidden),
        "intermediate_size": (wanted.intermediate, teacher.intermediate),
        "heads": (wanted.heads, teacher.heads),
        "kv_heads": (wanted.kv_heads, teacher.kv_heads),
    }
    if not deeper:
        limits["layers"] = (wanted.layers, teacher.layers)
    for name, (size, limit) in limits.items():
        if size > limit:
            fix = f"{name}={limit}" + (" or less, or rule=none for random layers" if name == "layers" else " or less")
            raise TechniqueError(name, f"{size}, but the teacher has {limit}", "no more than there is to take", fix)
    check_heads(wanted.heads, wanted.kv_heads)
    if wanted.group > teacher.group:
        raise TechniqueError(
            "heads",
            f"{wanted.group} query heads for each of {wanted.kv_heads} key-value heads, but the teacher has {teacher.group}",
            f"at most {teacher.group}: each was trained with its own key-value head",
            f"heads={wanted.kv_heads * teacher.group}, or more kv_heads",
        )
    return wanted


def _divided(heads: int, teacher: Shape) -> int:
    check_heads(
        heads,
        teacher.group,
        f"kv_heads given too, or a multiple of the teacher's {teacher.group} query heads per key-value head",
    )
    return heads // teacher.group


def check_heads(heads: int, parts: int, wanted: str = "a multiple of kv_heads") -> None:
    """Raise TechniqueError unless the query heads divide evenly."""
    if heads % parts:
        raise TechniqueError(
            "heads", f"{heads}, not a multiple of {parts}", wanted, f"heads={max(1, heads // parts) * parts}"
        )


def layers_by_rule(rule: Rule, count: int, total: int) -> list[int]:
    """The teacher's layer for each of the student's, `count` of `total`; empty for rule "none".

    uniform: evenly spaced from the first to the last (Sanh et al. 2019, arXiv 1910.01108, section 2, take one out of two).
    ends: the first half from the input, the rest from the output.
    """
    match rule:
        case "none":
            return []
        case "first":
            return list(range(count))
        case "last":
            return list(range(total - count, total))
        case "ends":
            head = -(-count // 2)
            return [*range(head), *range(total - count + head, total)]
        case _:
            return [round(place * (total - 1) / (count - 1)) for place in range(count)] if count > 1 else [0]


def check_taken(taken: Sequence[int], total: int) -> list[int]:
    """Return explicit teacher layers in the teacher's order.

    Raises TechniqueError for a layer that the teacher lacks, or that is listed twice.
    """
    outside = sorted(index for index in set(taken) if not 0 <= index < total)
    if outside:
        raise TechniqueError("take", f"no layer {', '.join(map(str, outside))} in the teacher", f"0 to {total - 1}")
    if len(set(taken)) != len(taken):
        raise TechniqueError("take", f"a layer is listed twice in {list(taken)}", "every layer once")
    return sorted(taken)
