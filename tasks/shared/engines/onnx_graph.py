"""An ONNX graph with a key-value cache, in ONNX Runtime on the CPU, one sequence at a time."""

import os.path
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.shared.engines.onnx_names import LOGITS, PAST, PRESENT
from tasks.shared.errors import ModelError
from tasks.shared.extras import extra_problem
from tasks.shared.model.onnx_files import GRAPH

if TYPE_CHECKING:
    import numpy as np

EXTRA, RUNTIME = "onnx", ("onnxruntime",)
"""The extra of pyproject.toml, and those of its packages that running a graph takes."""
ERRORS_ONLY = 3


class CachedGraph:
    """A graph of `export/onnx` with the keys and values of the tokens that it has read last.

    ids: these tokens.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self.session = open_session(folder / GRAPH, threads)
        inputs = {given.name: given for given in self.session.get_inputs()}
        self.inputs = frozenset(inputs)
        self.past = sorted(name for name in inputs if name.startswith(PAST))
        self.outputs = [LOGITS, *(PRESENT + name.removeprefix(PAST) for name in self.past)]
        self.shapes = [(1, inputs[name].shape[1], 0, inputs[name].shape[3]) for name in self.past]
        self.forget()

    def forget(self) -> None:
        """Empty the cache, so that the next logits do not depend on what was asked before."""
        import numpy as np

        self.ids: list[int] = []
        self.cache = [_value(np.zeros(shape, np.float32)) for shape in self.shapes]

    def logits(self, ids: Sequence[int]) -> "np.ndarray":
        """Return the logits after these tokens, (vocabulary,), float32.

        Runs those of them that the cache does not hold.
        """
        import numpy as np

        known = min(len(os.path.commonprefix([self.ids, list(ids)])), len(ids) - 1)
        self._crop(known)
        new = len(ids) - known
        given = {
            "input_ids": np.array([ids[known:]], np.int64),
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(known, len(ids), dtype=np.int64)[None],
            "logits_to_keep": np.array([new - 1], np.int64),
        }
        feeds = {name: _value(array) for name, array in given.items() if name in self.inputs}
        found = self.session.run_with_ort_values(self.outputs, feeds | dict(zip(self.past, self.cache, strict=True)))
        self.ids, self.cache = list(ids), found[1:]
        scores: np.ndarray = found[0].numpy()[0, -1]
        return scores

    def log_probabilities(self, ids: Sequence[int]) -> "np.ndarray":
        """Return the log-probabilities of the next token after these, (vocabulary,), nats, float64."""
        import numpy as np

        scores = self.logits(ids).astype(np.float64)
        shifted = scores - scores.max()
        logs: np.ndarray = shifted - np.log(np.exp(shifted).sum())
        return logs

    def _crop(self, length: int) -> None:
        """Keep the first tokens of the cache."""
        import numpy as np

        if length < len(self.ids):
            self.cache = [_value(np.ascontiguousarray(value.numpy()[:, :, :length])) for value in self.cache]
            self.ids = self.ids[:length]


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
