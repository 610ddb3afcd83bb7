"""llama.cpp's own quantizers, called in the shared library of the xllamacpp wheel.

The wheel has no Python function for them, so this use is unofficial: `library` proves names, block sizes and one known result first.
"""

import ctypes
import importlib.metadata
import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import TechniqueError
from tasks.shared.gguf.types import BLOCK_BYTES
from tasks.shared.model.gguf_types import type_numbers
from tasks.shared.model.widths import DIVISORS

if TYPE_CHECKING:
    import numpy as np

SYMBOLS = ("ggml_quantize_chunk", "ggml_quantize_init", "ggml_type_name", "ggml_type_size", "ggml_blck_size")
ROWS_AT_ONCE = 4096


def quantize_rows(
    weight: "np.ndarray[Any, Any]", scheme: str, importance: "np.ndarray[Any, Any] | None" = None
) -> "np.ndarray[Any, Any]":
    """Round rows to a block type.

    weight: (..., row), float32, finite; row is a multiple of the type's block.
    importance: (row,), >= 0, mean squared input of each column; it weights the squared errors.
    Returns (..., bytes of a row), uint8.
    Raises TechniqueError if the wheel lacks the quantizers, or a weight is not finite.
    """
    import numpy as np

    found = library()
    rows = np.ascontiguousarray(weight, np.float32).reshape(-1, weight.shape[-1])
    if not np.isfinite(rows).all():
        raise not_finite()
    width = rows.shape[-1] // DIVISORS[scheme] * BLOCK_BYTES[scheme]
    packed = np.empty((len(rows), width), np.uint8)
    columns = None
    if importance is not None:
        columns = np.ascontiguousarray(importance, np.float32)
        columns = np.maximum(columns, columns.mean() * 1e-6 + 1e-20).ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    kind = type_id(scheme)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part, place = rows[start : start + ROWS_AT_ONCE], packed[start:]
        written = found.ggml_quantize_chunk(
            kind, part.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), place.ctypes.data_as(ctypes.c_void_p), 0, len(part), rows.shape[-1], columns
        )  # fmt: skip
        if written != len(part) * width:
            raise _missing(f"{scheme}: {written} bytes written, not {len(part) * width}")
    return packed.reshape(*weight.shape[:-1], width)


def not_finite() -> TechniqueError:
    """Return the refusal of weights that are not finite."""
    return TechniqueError("weights", "not finite", "finite weights", "train with a smaller learning rate")


def type_id(scheme: str) -> int:
    """Return llama.cpp's number of a type."""
    return int(type_numbers()[scheme.upper()])


@cache
def library() -> Any:
    """Return the loaded library, with typed functions.

    Raises TechniqueError that names what the installed wheel lacks.
    """
    spec = importlib.util.find_spec("xllamacpp")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    files = sorted(folder.glob("*.abi3.so")) if folder else []
    if not files:
        raise _missing("no shared library in the package xllamacpp")
    found = ctypes.CDLL(str(files[0]))
    if lacking := [name for name in SYMBOLS if not hasattr(found, name)]:
        raise _missing(f"its library lacks {', '.join(lacking)}")
    _declare(found)
    if wrong := _wrong_types(found):
        raise _missing(f"other types than expected: {'; '.join(wrong)}")
    if not _repeats_q4_0(found):
        raise _missing("its q4_0 differs from the gguf package's")
    return found


def _missing(got: str) -> TechniqueError:
    """Return the refusal of a wheel."""
    version = importlib.metadata.version("xllamacpp") if importlib.util.find_spec("xllamacpp") else "not installed"
    return TechniqueError(
        "scheme",
        f"xllamacpp ({version}): {got}",
        "a wheel with llama.cpp's quantizers, which round to block types",
        "install the version in requirements.lock, or scheme=f16 and embedding=same",
    )


def _declare(found: Any) -> None:
    floats = ctypes.POINTER(ctypes.c_float)
    found.ggml_quantize_chunk.restype = found.ggml_type_size.restype = ctypes.c_size_t
    found.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, floats, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, floats,
    ]  # fmt: skip
    found.ggml_type_name.restype, found.ggml_blck_size.restype = ctypes.c_char_p, ctypes.c_int64
    for name in SYMBOLS[1:]:
        getattr(found, name).argtypes = [ctypes.c_int]


def _wrong_types(found: Any) -> list[str]:
    """Return the types whose name, block or bytes differ from our table."""
    wrong: list[str] = []
    for scheme, size in BLOCK_BYTES.items():
        kind = type_id(scheme)
        got = (found.ggml_type_name(kind).decode().lower(), found.ggml_blck_size(kind), found.ggml_type_size(kind))
        if got != (scheme, DIVISORS[scheme], size):
            wrong.append(f"{scheme} is {got}")
    return wrong


def _repeats_q4_0(found: Any) -> bool:
    """Return True if it rounds a known block as the gguf package does."""
    import numpy as np
    from gguf.quants import Q4_0

    block = np.sin(np.arange(64, dtype=np.float32)).reshape(2, 32)
    packed = np.zeros((2, BLOCK_BYTES["q4_0"]), np.uint8)
    floats = ctypes.POINTER(ctypes.c_float)
    found.ggml_quantize_chunk(
        type_id("q4_0"), block.ctypes.data_as(floats), packed.ctypes.data_as(ctypes.c_void_p), 0, 2, 32, None
    )  # fmt: skip
    return bool((packed == Q4_0.quantize_blocks(block)).all())
