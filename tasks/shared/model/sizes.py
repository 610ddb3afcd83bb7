"""Size of a model on disk, from file headers: weight files, bytes, parameters.

Separate from `weights.py`, since these functions only describe a model: an edit here re-keys no training.
"""

import math
from pathlib import Path

from tasks.shared.errors import ModelError
from tasks.shared.model.gguf_files import gguf_parts, read_gguf_header
from tasks.shared.model.graph_files import graph_files
from tasks.shared.model.weight_files import TensorInfo, loaded_files, read_header
from tasks.shared.model.weights import is_gguf

SCALES = (
    ".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx",
    ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".bitsandbytes__nf4", ".bitsandbytes__fp4", ".SCB", ".weight_format",
)  # fmt: skip
"""Ends of the names of tensors that describe a matrix: of compressed-tensors, and of bitsandbytes."""
LEVELS_MAP = ".quant_map"
"""End of the name of the tensor that goes with a matrix of bitsandbytes' 4-bit levels."""
STORED_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""Bytes of a number of the types, besides bytes, in which bitsandbytes stores levels (`bnb_4bit_quant_storage`)."""


def weight_files(path: Path) -> list[Path]:
    """List the loaded weight files: a GGUF, a folder's safetensors, GGUFs, or a graph's.

    A second copy of the weights in the folder is not counted (`loaded_files`).
    """
    if is_gguf(path):
        return [part for part in gguf_parts(path) if part.is_file()]
    graph = graph_files(path)
    return loaded_files(path) or sorted(path.glob("*.gguf")) or ([] if graph is None else graph.list_in(path))


def weight_bytes(path: Path) -> int:
    """Bytes of weights on disk."""
    return sum(file.stat().st_size for file in weight_files(path))


def parameter_count(path: Path) -> int:
    """Count parameters from the tensor headers, without loading weights.

    Tied tensors count once; a packed int4 word counts as its eight weights, a byte of bitsandbytes' levels as its two.
    An exported graph's description says how many its source has.  Raises ModelError if there are no weights.
    """
    files = weight_files(path)
    if (graph := graph_files(path)) is not None:
        return int(graph.read_description(path)["parameters"])
    if not files:
        raise ModelError(str(path), "no weights", "*.safetensors or *.gguf")
    return sum(_gguf_parameters(file) if file.suffix == ".gguf" else _safetensors_parameters(file) for file in files)


def _gguf_parameters(file: Path) -> int:
    return sum(math.prod(shape) for shape in read_gguf_header(file).tensors.values())


def _safetensors_parameters(file: Path) -> int:
    tensors = read_header(file)
    levels = {name.removesuffix(LEVELS_MAP) for name in tensors if name.endswith(LEVELS_MAP)}

    def count(name: str, tensor: TensorInfo) -> int:
        if name in levels:
            return math.prod(tensor.shape) * 2 * STORED_BYTES.get(tensor.dtype, 1)
        return math.prod(tensor.shape) * (8 if name.endswith(".weight_packed") else 1)  # eight 4-bit weights in a word

    return sum(count(name, tensor) for name, tensor in tensors.items() if not name.endswith(SCALES))
