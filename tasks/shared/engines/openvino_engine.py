"""OpenVINO as an engine: a graph that keeps its key-value cache, in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.shared.engines.engine import EngineName
from tasks.shared.engines.graph_session import GraphSession, graph_session
from tasks.shared.engines.openvino_graph import OpenVinoGraph
from tasks.shared.engines.protocol import Capabilities, Opening


class OpenVinoEngine:
    """Runs folders of `export/openvino` on the CPU; needs the extra `openvino`."""

    name: EngineName = "openvino"
    capabilities = Capabilities(reads=("openvino",), top_tokens=True, labels=True, tools=True, stop=True)

    @contextmanager
    def open(self, weights: Path, opening: Opening) -> Iterator[GraphSession]:
        """Load graph and tokenizer into this process."""
        yield graph_session(self.name, "OpenVINO", OpenVinoGraph(weights, opening.threads), weights)


OPENVINO = OpenVinoEngine()
