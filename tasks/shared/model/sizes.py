"""Size of a model on disk, from file headers: weight files, bytes, parameters.

Separate from `weights.py`, since these functions only describe a model: an edit here re-keys no training.
"""

import json
from pathlib import Path
from typing import Any

from tasks.shared.errors import ModelError
from tasks.shared.model.weights import is_gguf, read_gguf


def weight_files(path: Path) -> list[Path]:
    """List the weight files: the GGUF itself, or a folder's safetensors and GGUF files."""
    return [path] if is_gguf(path) else sorted([*path.glob("*.safetensors"), *path.glob("*.gguf")])


def weight_bytes(path: Path) -> int:
    """Bytes of weights on disk."""
    return sum(file.stat().st_size for file in weight_files(path))


def parameter_count(path: Path) -> int:
    """Count parameters from the tensor headers, without loading weights.

    Tied tensors count once; a packed int4 word counts as its eight weights.
    Raises ModelError if there are no weights.
    """
    files = weight_files(path)
    if not files:
        raise ModelError(str(path), "no weights", "*.safetensors or *.gguf")
    return sum(_gguf_parameters(file) if file.suffix == ".gguf" else _safetensors_parameters(file) for file in files)


def _gguf_parameters(file: Path) -> int:
    return int(sum(int(tensor.n_elements) for tensor in read_gguf(file).tensors))


def _safetensors_parameters(file: Path) -> int:
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(size))
    packed = {name for name in header if name.endswith((".weight_packed", ".weight_shape"))}
    count = 0
    for name, entry in header.items():
        if name == "__metadata__" or name.endswith(
            (".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx")
        ):
            continue
        elements = 1
        for length in entry["shape"]:
            elements *= length
        count += elements * 8 if name in packed else elements  # eight 4-bit weights in one 32-bit word
    return count
