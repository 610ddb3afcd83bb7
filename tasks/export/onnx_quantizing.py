"""Replacement of a graph's float matrices by blocks of integers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tasks.export.integer_blocks import Bits
from tasks.export.onnx_blocks import Blocks, pack_blocks
from tasks.shared.engines.graph_names import LOGITS
from tasks.shared.errors import TechniqueError
from tasks.shared.model.widths import choose_group_size

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

DOMAIN = "com.microsoft"
"""Operators of ONNX Runtime's own."""
INT8 = 4
"""MatMulNBits' accuracy_level for int8 activations; without one, it computes in float32."""


@dataclass(frozen=True)
class Matrix:
    """A product with a constant matrix.

    weight: name of the matrix, stored as (rows, columns), or as (columns, rows) if it is turned.
    """

    node: "NodeProto"
    weight: str
    turned: bool


@dataclass(frozen=True)
class Plan:
    """Formats of a graph's matrices.

    layers, outer: bits of the layers' matrices, and of embedding and head; None keeps float32.
    group: weights that share a scale; 0 takes the largest of 128, 64 and 32 that divides every row.  symmetric: without zero points.
    int8: round activations to int8 as well, where a matrix has few bits.
    """

    layers: Bits | None
    outer: Bits | None
    group: int
    symmetric: bool
    int8: bool


@dataclass
class Quantizer:
    """Packs the matrices of one graph; embedding and head of one tensor stay one."""

    model: "ModelProto"
    plan: Plan
    packed: dict[str, Blocks] = field(default_factory=dict)

    group: int = 0
    """Weights that share a scale, as chosen for this graph."""

    def columns(self) -> dict[str, int]:
        """Row lengths of all matrices by name."""
        weights = self.weights
        return {each.weight: weights[each.weight].dims[0 if each.turned else 1] for each in find_matrices(self.model)}

    @property
    def weights(self) -> "dict[str, TensorProto]":
        """Constants by name."""
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    def quantize(self) -> int:
        """Replace the matrices in place; return how many are stored as integers.

        Raises TechniqueError if a matrix of the layers, or the embedding, would stay in float32.
        """
        graph, heads = self.model.graph, head_outputs(self.model)
        self.group = choose_group_size(self.columns(), self.plan.group)
        new: dict[str, list[NodeProto]] = {}
        for matrix in find_matrices(self.model):
            bits = self.plan.outer if matrix.node.output[0] in heads else self.plan.layers
            if bits is not None:
                new[matrix.node.output[0]] = self._product(matrix, bits)
        if self.plan.outer is not None:
            new |= {node.output[0]: self._look_up(node, self.plan.outer) for node in self._embeddings()}
        nodes = [made for node in graph.node for made in new.get(node.output[0], [node])]
        keep(graph, nodes, [tensor for name, blocks in self.packed.items() for tensor in tensors_of(name, blocks)])
        if self.packed:
            from onnx import helper

            self.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        left = [matrix.weight for matrix in find_matrices(self.model) if matrix.node.output[0] not in heads]
        if self.plan.layers is not None and (left or not self.packed):
            got = f"{len(left)} matrices would stay in float32"
            raise TechniqueError("scheme", got, "every matrix of the layers as integers", "scheme=float32")
        return len(self.packed)

    def _product(self, matrix: Matrix, bits: Bits) -> "list[NodeProto]":
        from onnx import helper

        name, shape = self._pack(matrix.weight, bits, matrix.turned)
        attributes: dict[str, Any] = {"K": shape[1], "N": shape[0], "bits": bits, "block_size": self.group}
        attributes |= {"accuracy_level": INT8} if self.plan.int8 else {}
        given, output = [matrix.node.input[0], *parts_of(name, self.packed[name])], matrix.node.output[0]
        biased = matrix.node.op_type == "Gemm" and len(matrix.node.input) > 2
        found = [helper.make_node("MatMulNBits", given, [f"{output}.product" if biased else output], domain=DOMAIN, **attributes)]  # fmt: skip
        if biased:
            found.append(helper.make_node("Add", [f"{output}.product", matrix.node.input[2]], [output]))
        return found

    def _look_up(self, node: "NodeProto", bits: Bits) -> "list[NodeProto]":
        import numpy as np
        from onnx import helper, numpy_helper

        name, shape = self._pack(node.input[0], bits, False)
        levels, *others = parts_of(name, self.packed[name])
        rows = f"{name}.rows"
        if rows not in self.weights:
            self.model.graph.initializer.append(numpy_helper.from_array(np.array([shape[0], -1]), rows))
        flat = f"{node.output[0]}.levels"
        looked = helper.make_node(
            "GatherBlockQuantized", [flat, node.input[1], *others], list(node.output), domain=DOMAIN,
            bits=bits, block_size=self.group, gather_axis=0, quantize_axis=1,
        )  # fmt: skip
        return [helper.make_node("Reshape", [levels, rows], [flat]), looked]

    def _embeddings(self) -> "list[NodeProto]":
        weights, makers = self.weights, {name: node for node in self.model.graph.node for name in node.output}

        def are_tokens(name: str) -> bool:
            while name in makers and makers[name].op_type == "Reshape":  # GPT-2 reshapes its input
                name = makers[name].input[0]
            return bool(name == "input_ids")

        nodes = [node for node in self.model.graph.node if node.op_type == "Gather" and node.input[0] in weights]
        found = [node for node in nodes if are_tokens(node.input[1]) and len(weights[node.input[0]].dims) == 2]
        if not found:
            raise TechniqueError(
                "embedding", "no embedding that the tokens look up directly", "one", "embedding=float32"
            )
        return found

    def _pack(self, weight: str, bits: Bits, turned: bool) -> tuple[str, tuple[int, int]]:
        """Pack a matrix once; return its name and its rows and columns."""
        import numpy as np
        from onnx import numpy_helper

        array: Any = numpy_helper.to_array(self.weights[weight])
        rows = array.T if turned else array
        name = f"{weight}.q{bits}"
        if name not in self.packed:
            whole = np.ascontiguousarray(rows, dtype=np.float32)
            self.packed[name] = pack_blocks(whole, bits, self.group, self.plan.symmetric)
        return name, (rows.shape[0], rows.shape[1])


def find_matrices(model: "ModelProto") -> Iterator[Matrix]:
    """Yield every product with a constant matrix of two axes."""
    constants = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    turns = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Transpose"}
    for node in model.graph.node:
        if node.op_type not in {"MatMul", "Gemm"}:
            continue
        across = node.op_type == "Gemm" and any(each.name == "transB" and each.i for each in node.attribute)
        if node.input[1] in constants:
            yield Matrix(node, node.input[1], not across)
        elif turns.get(node.input[1]) in constants:
            yield Matrix(node, turns[node.input[1]], across)


def head_outputs(model: "ModelProto") -> set[str]:
    """Return the outputs of the products nearest to the logits: of the head."""
    makers = {name: node for node in model.graph.node for name in node.output}
    products = {matrix.node.output[0] for matrix in find_matrices(model)}
    waiting, seen = [LOGITS], set[str]()
    while waiting and not products & set(waiting):
        seen.update(waiting)
        inputs = [name for output in waiting if output in makers for name in makers[output].input]
        waiting = [name for name in inputs if name not in seen]
    return products & set(waiting)


def parts_of(name: str, blocks: Blocks) -> list[str]:
    """Names of a packed matrix's tensors: levels, scales and, if there are any, zero points."""
    return [f"{name}.levels", f"{name}.scales", *([f"{name}.zeros"] if blocks.zeros is not None else [])]


def tensors_of(name: str, blocks: Blocks) -> "list[TensorProto]":
    """Return a packed matrix's tensors."""
    from onnx import numpy_helper

    arrays = [blocks.levels, blocks.scales, *([blocks.zeros] if blocks.zeros is not None else [])]
    return [numpy_helper.from_array(array, part) for part, array in zip(parts_of(name, blocks), arrays, strict=True)]


def keep(graph: Any, nodes: "Sequence[NodeProto]", more: "Sequence[TensorProto]") -> None:
    """Set a graph's nodes; drop nodes and constants whose results nobody reads any more."""
    makers: Mapping[str, NodeProto] = {name: node for node in nodes for name in node.output}
    waiting, needed = [value.name for value in graph.output], set[str]()
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting.extend(makers[name].input if name in makers else ())
    constants = [tensor for tensor in [*graph.initializer, *more] if tensor.name in needed]
    used = [node for node in nodes if needed.intersection(node.output)]
    for field_name, values in (("node", used), ("initializer", constants)):
        graph.ClearField(field_name)
        getattr(graph, field_name).extend(values)
