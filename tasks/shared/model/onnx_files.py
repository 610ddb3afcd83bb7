"""Files of an ONNX folder, as `export/onnx` writes it, read without onnx or onnxruntime.

A folder holds the graph (model.onnx), its weights (model.onnx.data), the tokenizer and configurations of the source, and a description.
"""

import json
from pathlib import Path
from typing import Any

from tasks.shared.files import write_text
from tasks.shared.model.weight_files import loaded_files

GRAPH, WEIGHTS, DESCRIPTION = "model.onnx", "model.onnx.data", "onnx.json"


def is_onnx(path: Path) -> bool:
    """Return True for a folder with an ONNX graph and no weights that transformers loads."""
    return (path / GRAPH).is_file() and not loaded_files(path)


def onnx_weight_files(folder: Path) -> list[Path]:
    """List graph and weights, as far as they exist."""
    return [file for name in (GRAPH, WEIGHTS) if (file := folder / name).is_file()]


def write_description(folder: Path, **about: Any) -> None:
    """Write what only onnx could read from the graph: its scheme and parameters."""
    write_text(folder / DESCRIPTION, json.dumps(about, indent=1))


def read_description(folder: Path) -> dict[str, Any]:
    """Return what `write_description` wrote; empty for a graph from elsewhere."""
    try:
        found = json.loads((folder / DESCRIPTION).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
