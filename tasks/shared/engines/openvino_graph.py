"""An OpenVINO graph that keeps its key-value cache, on the CPU, one sequence at a time."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.shared.engines.graph_names import LOGITS
from tasks.shared.engines.graph_session import CachedGraph
from tasks.shared.errors import ModelError
from tasks.shared.extras import extra_problem
from tasks.shared.model.graph_files import OPENVINO

if TYPE_CHECKING:
    import numpy as np

EXTRA = "openvino"
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
"""Arithmetic in float32.  By itself, OpenVINO takes bfloat16 on processors that have it: here its logits were off by 0.3."""

DECODING = ("Convert", "Subtract", "Multiply", "Reshape", "Transpose")
"""Operations that turn stored integers into a matrix."""


class OpenVinoGraph(CachedGraph):
    """A graph of `export/openvino` in memory.

    options: OpenVINO's own, besides the file's.
    """

    def __init__(self, folder: Path, threads: int, options: dict[str, Any] | None = None) -> None:
        self.request = open_request(folder / OPENVINO.graph, threads, EXACT if options is None else options)
        self.inputs = frozenset(name for given in self.request.model_inputs for name in given.names)

    def read(self, new: Sequence[int], known: int) -> "np.ndarray":
        """Run new tokens; see `CachedGraph`."""
        import numpy as np

        total = known + len(new)
        given = {
            "input_ids": np.array([new], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(known, total, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self.request.infer({name: array for name, array in given.items() if name in self.inputs})
        scores: np.ndarray = self.request.get_tensor(LOGITS).data[0, -1].astype(np.float32)
        return scores

    def crop(self, length: int) -> None:
        """Keep the first tokens of the states, (batch, heads, tokens, size)."""
        import numpy as np

        if length == 0:
            self.request.reset_state()
            return
        tensor = import_openvino().Tensor
        for state in self.request.query_state():
            state.state = tensor(np.ascontiguousarray(state.state.data[:, :, :length]))


def open_request(file: Path, threads: int, options: dict[str, Any]) -> Any:
    """Return an inference request of a graph on the CPU, for the logits of the last token.

    Raises ConfigError that names the extra if OpenVINO is not installed, ModelError if it cannot load the file.
    """
    openvino = import_openvino()
    resources = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    try:
        core = openvino.Core()
        graph = core.read_model(file)
        keep_last_logits(graph)
        return core.compile_model(graph, "CPU", {**resources, **options}).create_infer_request()
    except RuntimeError as error:
        reason = " ".join(str(error).replace(str(file.parent), file.parent.name).split())[:300]
        raise ModelError(
            str(file), f"OpenVINO cannot load it: {reason}", "a whole folder of export/openvino", "export it again"
        ) from error


def import_openvino() -> Any:
    """Return the module `openvino`, which here reports nothing to its makers.

    Its package sends statistics, in a thread, as soon as it is imported; without the module that sends them it takes a stub of its own.
    All imports of it go through here, and by name, since a run's template process imports what the code's import statements name.
    Raises ConfigError that names the extra if it is not installed.
    """
    if (problem := extra_problem("openvino", EXTRA, ("openvino",))) is not None:
        raise problem
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return import_module("openvino")


def keep_last_logits(graph: Any) -> None:
    """Cut a graph to the last token before its head, since a long prompt's logits take memory.

    Unknown heads stay as they are.
    """
    import numpy as np

    opset = import_openvino().opset15
    head = find_head(graph)
    if head is not None and head.input_value(0).get_partial_shape().rank.get_length() == 3:
        start, stop, step, axis = (np.array([number], np.int64) for number in (-1, np.iinfo(np.int64).max, 1, 1))
        last = opset.slice(head.input_value(0), start, stop, step, axis)
        head.input(0).replace_source_output(last.output(0))
        graph.validate_nodes_and_infer_types()


def find_head(graph: Any) -> Any:
    """Return the product that gives the logits, up to what scales or caps them.

    None for another graph.
    """
    node = graph.output(LOGITS).get_node().input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        varying = [value.get_node() for value in node.input_values() if not is_constant(value.get_node())]
        if len(varying) != 1:
            return None
        (node,) = varying
    return node


def is_constant(node: Any) -> bool:
    """Return True for a constant, or one that a few operations decode."""
    if node.get_type_name() not in DECODING:
        return bool(node.get_type_name() == "Constant")
    return all(is_constant(value.get_node()) for value in node.input_values())
