"""An ONNX graph with a key-value cache, in ONNX Runtime on the CPU, one sequence at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.shared.engines.graph_names import LOGITS, PAST, PRESENT
from tasks.shared.engines.graph_session import CachedGraph
from tasks.shared.errors import ModelError
from tasks.shared.extras import extra_problem
from tasks.shared.model.graph_files import ONNX

if TYPE_CHECKING:
    import numpy as np

EXTRA, RUNTIME = "onnx", ("onnxruntime",)
"""The extra of pyproject.toml, and those of its packages that running a graph takes."""
ERRORS_ONLY = 3


class OnnxGraph(CachedGraph):
    """A graph of `export/onnx` in memory."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.session = open_session(folder / ONNX.graph, threads)
        inputs = {given.name: given for given in self.session.get_inputs()}
        self.inputs = frozenset(inputs)
        self.past = sorted(name for name in inputs if name.startswith(PAST))
        self.outputs = [LOGITS, *(PRESENT + name.removeprefix(PAST) for name in self.past)]
        self.shapes = [(1, inputs[name].shape[1], 0, inputs[name].shape[3]) for name in self.past]
        self.cache: list[Any] = []
        self.forget()

    def read(self, new: Sequence[int], known: int) -> "np.ndarray":
        """Run new tokens; see `CachedGraph`."""
        import numpy as np

        total = known + len(new)
        given = {
            "input_ids": np.array([new], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(known, total, dtype=np.int64)[None],
            "logits_to_keep": np.array([len(new) - 1], np.int64),
        }
        feeds = {name: _value(array) for name, array in given.items() if name in self.inputs}
        found = self.session.run_with_ort_values(self.outputs, feeds | dict(zip(self.past, self.cache, strict=True)))
        self.cache = found[1:]
        scores: np.ndarray = found[0].numpy()[0, -1]
        return scores

    def crop(self, length: int) -> None:
        """Keep the first tokens of the cache."""
        import numpy as np

        if length == 0:
            self.cache = [_value(np.zeros(shape, np.float32)) for shape in self.shapes]
        else:
            self.cache = [_value(np.ascontiguousarray(value.numpy()[:, :, :length])) for value in self.cache]


def open_session(file: Path, threads: int) -> Any:
    """Return ONNX Runtime's session of a graph, on the CPU.

    threads: they sleep when they wait, since other steps may run beside.
    Raises ConfigError that names the extra if ONNX Runtime is not installed, ModelError if it cannot load the file.
    """
    if (problem := extra_problem("onnxruntime", EXTRA, RUNTIME)) is not None:
        raise problem
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = ERRORS_ONLY
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common type of their own
        reason = " ".join(str(error).replace(str(file.parent), file.parent.name).split())
        raise ModelError(
            str(file), f"ONNX Runtime cannot load it: {reason}", "a whole folder of export/onnx", "export it again"
        ) from error


def _value(array: "np.ndarray") -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
