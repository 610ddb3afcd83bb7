"""ONNX Runtime as an engine: a graph with a key-value cache, in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.shared.engines.engine import EngineName
from tasks.shared.engines.graph_session import GraphSession, graph_session
from tasks.shared.engines.onnx_graph import OnnxGraph
from tasks.shared.engines.protocol import Capabilities, Opening


class OnnxEngine:
    """Runs folders of `export/onnx` on the CPU; needs the extra `onnx`."""

    name: EngineName = "onnxruntime"
    capabilities = Capabilities(reads=("onnx",), top_tokens=True, labels=True, tools=True, stop=True)

    @contextmanager
    def open(self, weights: Path, opening: Opening) -> Iterator[GraphSession]:
        """Load graph and tokenizer into this process."""
        yield graph_session(self.name, "ONNX Runtime", OnnxGraph(weights, opening.threads), weights)


ONNXRUNTIME = OnnxEngine()
