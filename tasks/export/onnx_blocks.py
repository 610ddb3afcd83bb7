"""Matrices in blocks of integers, for ONNX Runtime's MatMulNBits and GatherBlockQuantized."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.export.integer_blocks import Bits, keep_integers, pack_nibbles, unpack_nibbles

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Blocks:
    """A matrix in blocks along its rows: weight = (level - zero point) * scale.

    levels: (rows, blocks, bytes of a block), uint8; of two 4-bit levels, the first is in the low half.
    scales: (rows, blocks), float32.
    zeros: (rows, bytes of the zero points), uint8, packed in the same way; None if all are half of the range.
    """

    levels: "np.ndarray[Any, Any]"
    scales: "np.ndarray[Any, Any]"
    zeros: "np.ndarray[Any, Any] | None"


def pack_blocks(weight: "np.ndarray[Any, Any]", bits: Bits, group: int, symmetric: bool) -> Blocks:
    """Round a matrix to blocks by ONNX Runtime's quantizer.

    Blocks on a 4-bit grid keep their integers.
    weight: (rows, columns), float32; `group` divides the columns.
    A block of a calibrated quantizer is a scale times small integers already, and rounding it again would undo the calibration.
    """
    import numpy as np

    with quiet_quantizer():
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            DefaultWeightOnlyQuantizer,
        )
    config = DefaultWeightOnlyQuantConfig(block_size=group, is_symmetric=symmetric, bits=bits)
    levels, scales, zeros = DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(weight.T))
    if bits == 4:
        unpacked = None if symmetric else unpack_nibbles(zeros)[:, : scales.shape[1]]
        keep_integers(weight.reshape(-1, group), levels.reshape(-1, group // 2), scales.reshape(-1), unpacked)
        zeros = zeros if unpacked is None else pack_nibbles(unpacked)
    return Blocks(levels, scales, None if symmetric else zeros)


@contextmanager
def quiet_quantizer() -> Iterator[None]:
    """Keep the quantizer's module from configuring the root logger when it is imported."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    root.addHandler(logging.NullHandler())
    try:
        yield
    finally:
        root.handlers[:], root.level = before, level
