"""Replacement of an OpenVINO graph's matrices by blocks of integers, or by 16-bit floats."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tasks.export.integer_blocks import Bits, keep_integers, pack_nibbles, unpack_nibbles
from tasks.shared.engines.openvino_graph import find_head, import_openvino
from tasks.shared.errors import TechniqueError
from tasks.shared.model.widths import choose_group_size

if TYPE_CHECKING:
    import numpy as np

SMALL = 1024
"""Weights up to which a constant stays in float32."""


@dataclass(frozen=True)
class Blocks:
    """A matrix in blocks along its rows: weight = (level - zero point) * scale.

    levels: (rows, blocks, group), uint8.  scales: (rows, blocks), float16.  zeros: (rows, blocks), uint8; None if all are half of the range.
    """

    levels: "np.ndarray[Any, Any]"
    scales: "np.ndarray[Any, Any]"
    zeros: "np.ndarray[Any, Any] | None"


@dataclass(frozen=True)
class Matrix:
    """A reading of a constant matrix: by a product, or by the embedding's look-up.

    constant: node of the weights, stored as (rows, columns), or as (columns, rows) if it is turned.
    """

    node: Any
    constant: Any
    turned: bool

    def rows(self) -> "np.ndarray[Any, Any]":
        """Return the matrix as (rows, columns), float32."""
        import numpy as np

        array = self.constant.data
        return np.ascontiguousarray(array.T if self.turned else array, dtype=np.float32)


@dataclass(frozen=True)
class Plan:
    """Formats of a graph's matrices.

    layers, outer: "float32", "float16", or bits of integers, of the layers' matrices, and of embedding and head.
    group: weights that share a scale; 0 takes the largest of 128, 64 and 32 that divides every row.  symmetric: without zero points.
    """

    layers: Bits | str
    outer: Bits | str
    group: int
    symmetric: bool


@dataclass
class Quantizer:
    """Packs the matrices of one graph; embedding and head of one tensor stay one."""

    graph: Any
    plan: Plan
    packed: dict[tuple[Bits | str, bytes], Any] = field(default_factory=dict)
    group: int = 0
    """Weights that share a scale, as chosen for this graph."""

    def quantize(self) -> int:
        """Replace the matrices in place; return how many are stored as integers.

        Raises TechniqueError if a matrix of the layers, or the embedding, would stay in float32.
        """
        head, products = find_head(self.graph), list(find_products(self.graph))
        embeddings = list(find_embeddings(self.graph))
        if not embeddings and self.plan.outer != "float32":
            raise TechniqueError(
                "embedding", "no embedding that the tokens look up directly", "one", "embedding=float32"
            )
        heads = [matrix for matrix in products if head is not None and same_node(matrix.node, head)]
        layers = [matrix for matrix in products if head is None or not same_node(matrix.node, head)]
        if isinstance(self.plan.layers, int) and not layers:
            raise TechniqueError(
                "scheme", "no matrix found", "every matrix of the layers as integers", "scheme=float32"
            )
        if isinstance(self.plan.layers, int) or isinstance(self.plan.outer, int):
            names = {f"matrix {index}": matrix.rows().shape[1] for index, matrix in enumerate(products)}
            self.group = choose_group_size(names, self.plan.group)
        for form, matrices in ((self.plan.outer, [*embeddings, *heads]), (self.plan.layers, layers)):
            for matrix in matrices if form != "float32" else ():
                self._replace(matrix, form)
        if self.plan.layers == "float16":
            self._shorten_others()
        self.graph.validate_nodes_and_infer_types()
        return sum(isinstance(form, int) for form, _ in self.packed)

    def _replace(self, matrix: Matrix, form: Bits | str) -> None:
        opset = import_openvino().opset15
        decoded = self._decoded(matrix, form)
        if matrix.node.get_type_name() == "Gather":
            matrix.node.input(0).replace_source_output(decoded)
            return
        product = opset.matmul(matrix.node.input_value(0), decoded, False, True)
        for reader in matrix.node.output(0).get_target_inputs():
            reader.replace_source_output(product.output(0))

    def _decoded(self, matrix: Matrix, form: Bits | str) -> Any:
        """Return the float32 matrix (rows, columns) as decoded from a constant of this form."""
        rows = matrix.rows()
        key = (form, hashlib.sha256(repr(rows.shape).encode() + rows.tobytes()).digest())
        if key not in self.packed:
            if isinstance(form, str):
                self.packed[key] = shorten(rows)
            else:
                self.packed[key] = decode(pack_blocks(rows, form, self.group, self.plan.symmetric), form)
        return self.packed[key].output(0)

    def _shorten_others(self) -> None:
        """Store what is no matrix, such as experts of three axes, in 16 bits too."""
        for node in list(self.graph.get_ops()):
            if (
                node.get_type_name() == "Constant"
                and node.get_element_type().get_type_name() == "f32"
                and node.data.size > SMALL
            ):
                readers, short = node.output(0).get_target_inputs(), shorten(node.data)
                for reader in readers:
                    reader.replace_source_output(short.output(0))


def find_products(graph: Any) -> Iterator[Matrix]:
    """Yield every product with a constant matrix of two axes."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        weight, turned = node.input_value(1).get_node(), not node.get_attributes()["transpose_b"]
        if weight.get_type_name() == "Transpose":
            weight, turned = weight.input_value(0).get_node(), not turned
        if weight.get_type_name() == "Constant" and len(weight.data.shape) == 2:
            yield Matrix(node, weight, turned)


def find_embeddings(graph: Any) -> Iterator[Matrix]:
    """Yield every look-up of tokens in a constant matrix."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "Gather":
            continue
        weight, asked = node.input_value(0).get_node(), node.input_value(1)
        while asked.get_node().get_type_name() in ("Convert", "Reshape"):  # GPT-2 reshapes its input
            asked = asked.get_node().input_value(0)
        if weight.get_type_name() == "Constant" and len(weight.data.shape) == 2 and "input_ids" in asked.names:
            yield Matrix(node, weight, False)


def same_node(one: Any, other: Any) -> bool:
    """Return True for two handles of one node, whose names are unique in a graph."""
    return bool(one.get_friendly_name() == other.get_friendly_name())


def pack_blocks(weight: "np.ndarray[Any, Any]", bits: Bits, group: int, symmetric: bool) -> Blocks:
    """Round a matrix to blocks; those on a 4-bit grid keep their integers.

    weight: (rows, columns), float32; `group` divides the columns.
    A block of a calibrated quantizer is a scale times small integers already, and rounding it again would undo the calibration.
    """
    import numpy as np

    blocks = weight.reshape(len(weight), -1, group)
    top, middle = (1 << bits) - 1, 1 << (bits - 1)
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    farthest = np.where(
        -low > high, low, high
    )  # becomes the lowest symmetric level, of which there is one more than of the highest
    scales = usable(farthest / -middle if symmetric else (high - low) / top)
    zeros = np.full(scales.shape, middle) if symmetric else np.clip(np.round(-low / scales), 0, top)
    levels = np.clip(np.round(blocks / scales[..., None]) + zeros[..., None], 0, top).astype(np.uint8)
    zeros = zeros.astype(np.uint8)
    if bits == 4:
        found = pack_nibbles(levels.reshape(-1, group))
        scales = scales.copy()
        keep_integers(blocks.reshape(-1, group), found, scales.reshape(-1), None if symmetric else zeros)
        levels, scales = unpack_nibbles(found).reshape(levels.shape), usable(scales)
    return Blocks(levels, scales.astype(np.float16), None if symmetric else zeros)


def usable(scales: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Return scales as 16 bits hold them, as float32; 0 becomes 1.

    Raises TechniqueError for weights that are too large.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        short = scales.astype(np.float16).astype(np.float32)
    if not np.isfinite(short).all():
        raise TechniqueError(
            "scheme", f"weights up to {np.abs(scales).max():.3g} levels apart", "scales below 65504", "scheme=float32"
        )
    return np.where(short == 0, np.float32(1), short)


def decode(blocks: Blocks, bits: Bits) -> Any:
    """Return nodes that decode blocks to a float32 matrix.

    OpenVINO's plugins know this pattern, and compute with the integers.
    """
    import numpy as np

    openvino = import_openvino()
    opset, kind = openvino.opset15, openvino.Type
    rows, count, group = blocks.levels.shape
    signed = blocks.zeros is None
    levels = blocks.levels ^ (1 << (bits - 1)) if signed else blocks.levels
    kinds = {(4, False): kind.u4, (4, True): kind.i4, (8, False): kind.u8, (8, True): kind.i8}

    def stored(values: Any, shape: list[int]) -> Any:
        content = values.reshape(-1) if bits == 8 else pack_nibbles(values.reshape(1, -1))[0]
        tensor = openvino.Tensor(kinds[bits, signed], shape)  # owns its memory, as one made from an array does not
        tensor.data.reshape(-1).view(np.uint8)[:] = content
        return opset.constant(tensor)

    found = opset.convert(stored(levels, [rows, count, group]), np.float16)
    if blocks.zeros is not None:
        found = opset.subtract(found, opset.convert(stored(blocks.zeros, [rows, count, 1]), np.float16))
    found = opset.multiply(found, opset.constant(blocks.scales[..., None]))
    whole = opset.reshape(found, np.array([rows, count * group], np.int64), False)
    return opset.convert(whole, np.float32)


def shorten(weight: "np.ndarray[Any, Any]") -> Any:
    """Return nodes that widen a float16 constant to float32."""
    import numpy as np

    opset = import_openvino().opset15
    return opset.convert(opset.constant(weight.astype(np.float16)), np.float32)
