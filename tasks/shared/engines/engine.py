"""Names of the engines, forms of weights, and the choice of an engine for given weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.shared.errors import ModelError
from tasks.shared.model.gguf_files import gguf_parts
from tasks.shared.model.graph_files import graph_files
from tasks.shared.model.weight_files import loaded_files, shown, unused_files
from tasks.shared.model.weights import is_gguf, stored_form

EngineName = Literal["transformers", "llama.cpp", "onnxruntime", "openvino", "vllm"]
WeightForm = Literal["dense", "packed", "bitsandbytes", "gguf", "onnx", "openvino"]
"""dense: safetensors of plain tensors.  packed: safetensors of integers with scales.  bitsandbytes: safetensors of that library.
gguf: a GGUF file.  onnx, openvino: a folder of `export/onnx` or `export/openvino`."""
GRAPH_ENGINES: Mapping[str, EngineName] = {"onnx": "onnxruntime", "openvino": "openvino"}
"""Engine of an exported graph, by its form."""
FORM_PACKAGES: Mapping[WeightForm, tuple[str, ...]] = {
    "onnx": ("onnxruntime",),
    "openvino": ("openvino",),
    "bitsandbytes": ("bitsandbytes",),
}
"""Optional packages that compute with weights of a form: their versions decide a model's answers."""


@dataclass(frozen=True)
class Weights:
    """Weights and the engine that reads them without conversion.

    path: folder with safetensors or an exported graph, or GGUF file.
    fault: reason why no engine can read them; empty if one can.  With a fault, `engine` is a guess and `path` is the original path.
    """

    engine: EngineName
    path: Path
    fault: str = ""


def find_weights(path: Path, llama: bool = False) -> Weights:
    """Find the weights at a path and the engine that reads them, from file names only.

    path: a GGUF file, a folder with safetensors under names that transformers loads (whatever else it contains), a folder with one
    GGUF file or all parts of a split one, or a folder of an exported graph.
    llama: look for llama.cpp's weights only.
    """
    engine: EngineName = "llama.cpp" if llama else "transformers"
    if not path.exists():
        return Weights(engine, path, "no such file or folder")
    if is_gguf(path):
        return _gguf_weights(path, gguf_parts(path), path)
    try:
        if not llama and loaded_files(path):
            return Weights("transformers", path)
    except ModelError as error:
        return Weights("transformers", path, f"{error.where}: {error.got}")
    files = sorted(path.glob("*.gguf"))
    if files:
        parts = gguf_parts(files[0])
        return _gguf_weights(path, parts, files[0], "" if set(files) <= {*parts} else f"{len(files)} GGUF files")
    if not llama and (graph := graph_files(path)) is not None:
        return Weights(GRAPH_ENGINES[graph.form], path)
    if not llama and (other := unused_files(path)):
        return Weights(engine, path, f"{shown(other)}, none of which transformers loads")
    return Weights(engine, path, "no *.gguf" if llama else "no *.safetensors, no *.gguf and no exported graph")


def _gguf_weights(path: Path, parts: list[Path], first: Path, fault: str = "") -> Weights:
    """Return llama.cpp's weights; a fault if parts of a split model are missing.

    path: as given.  parts: all that belong to the model.  first: the file that llama.cpp opens.
    """
    missing = sum(not part.is_file() for part in parts)
    if missing and not fault:
        fault = f"{len(parts) - missing} of the {len(parts)} parts of a split GGUF"
    elif parts[0].name != first.name:
        fault = fault or f"not the first part of a split GGUF, {parts[0].name}"
    return Weights("llama.cpp", path if fault else first, fault)


def weight_form(path: Path) -> WeightForm:
    """Return the form of a file or folder: by name, or from a Hugging Face configuration."""
    if is_gguf(path):
        return "gguf"
    if (graph := graph_files(path)) is not None:
        return graph.form
    return stored_form(path)
