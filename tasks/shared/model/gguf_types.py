"""Types of llama.cpp that the gguf package does not know yet, added to its tables.

The installed wheel of llama.cpp writes and reads q2_0 (2.25 bits, blocks of 64); gguf 0.19 has no number for it, and refuses to read a
file with it.  A later gguf that has the type is left as it is.
"""

from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGMLQuantizationType

TYPE, FILE_TYPE = ("Q2_0", 42), ("MOSTLY_Q2_0", 41)
"""Names and numbers in ggml.h and llama.h."""
BLOCK = (64, 18)
"""Weights and bytes of a block."""


@cache
def type_numbers() -> "type[GGMLQuantizationType]":
    """Return the gguf package's type numbers, with those that it lacks.

    The package then reads and writes them.
    """
    import gguf

    numbers = gguf.GGMLQuantizationType
    _add(gguf.LlamaFileType, *FILE_TYPE)
    if _add(numbers, *TYPE):
        number = numbers(TYPE[1])
        gguf.GGML_QUANT_SIZES[number] = BLOCK
        base: Any = next(iter(gguf.quants._type_traits.values())).__mro__[1]
        type("Q2_0", (base,), {"dequantize_blocks": _unpacked}, qtype=number)
    return numbers


def _add(enumeration: type[IntEnum], name: str, value: int) -> bool:
    """Add a member; return False if there is one of this number."""
    if value in enumeration._value2member_map_:
        return False
    member = int.__new__(enumeration, value)
    member._name_, member._value_ = name, value
    enumeration._member_map_[name] = enumeration._value2member_map_[value] = member
    enumeration._member_names_.append(name)
    return True


@classmethod  # type: ignore[misc]
def _unpacked(cls: Any, blocks: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Return the weights of blocks: (blocks, 18) uint8 to (blocks, 64) float32."""
    import numpy as np

    scales, codes = np.hsplit(blocks, [2])
    levels = (codes[..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(len(blocks), -1).astype(np.float32) - 1
    found: np.ndarray[Any, Any] = scales.view(np.float16).astype(np.float32) * levels
    return found
