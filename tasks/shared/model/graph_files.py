"""Folders of an exported graph, read without the engines' libraries.

As `export/onnx` and `export/openvino` write it, a folder holds the graph, its weights, the tokenizer and configurations of the source, and a description.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks.shared.files import write_text
from tasks.shared.model.weight_files import loaded_files


@dataclass(frozen=True)
class GraphFiles:
    """Names of a graph's files.

    form: of the weights.  title: how the format is called.
    """

    form: Literal["onnx", "openvino"]
    title: str
    graph: str
    weights: str
    description: str

    def list_in(self, folder: Path) -> list[Path]:
        """List graph and weights, as far as they exist."""
        return [file for name in (self.graph, self.weights) if (file := folder / name).is_file()]

    def describe(self, folder: Path, **about: Any) -> None:
        """Write what only the engine's library could read from the graph: its scheme and parameters."""
        write_text(folder / self.description, json.dumps(about, indent=1))

    def read_description(self, folder: Path) -> dict[str, Any]:
        """Return what `describe` wrote; empty for a graph from elsewhere."""
        try:
            found = json.loads((folder / self.description).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


ONNX = GraphFiles("onnx", "ONNX", "model.onnx", "model.onnx.data", "onnx.json")
OPENVINO = GraphFiles("openvino", "OpenVINO", "openvino_model.xml", "openvino_model.bin", "openvino.json")


def graph_files(path: Path) -> GraphFiles | None:
    """Return the files of a folder with a graph; None for anything else.

    A folder that also has weights that transformers loads counts as these.
    """
    found = next((files for files in (ONNX, OPENVINO) if (path / files.graph).is_file()), None)
    return None if found is None or loaded_files(path) else found
