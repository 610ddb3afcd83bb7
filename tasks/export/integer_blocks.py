"""Blocks of 4-bit integers as graphs store them.

Packing, and integers that a calibrated quantizer chose.
"""

from typing import TYPE_CHECKING, Any, Literal

from tasks.shared.gguf.blocks import ON_GRID, find_grid, find_offset_grid

if TYPE_CHECKING:
    import numpy as np

Bits = Literal[4, 8]
TOP = 15
"""Highest 4-bit level."""


def keep_integers(
    weights: "np.ndarray[Any, Any]",
    levels: "np.ndarray[Any, Any]",
    scales: "np.ndarray[Any, Any]",
    zeros: "np.ndarray[Any, Any] | None",
) -> None:
    """Replace blocks that are integers times a scale already by these, in place.

    weights: (blocks, group), float32.  levels: (blocks, group / 2), scales: (blocks,), zeros: (rows, blocks of a row), as in `Blocks`,
    zeros unpacked; None if every zero point is 8, which leaves blocks with another one as they are rounded.
    """
    import numpy as np

    found, _, steps = find_grid(weights)
    kept, centers = steps.astype(np.int16) + 8, np.full(len(weights), 8)
    if zeros is not None:
        shifted, _, _, offsets = find_offset_grid(weights)
        offsets = offsets // np.maximum(np.gcd.reduce(offsets, axis=-1), 1)[:, None]  # as few steps as the block has
        span = offsets.max(-1).astype(np.int64)
        for times in range(1, TOP + 1):  # the zero point may lie between two of them: finer steps
            places = np.flatnonzero(shifted & ~found & (span > 0) & (times * span <= TOP))
            least, most = weights[places].min(-1), weights[places].max(-1)
            exact = least * (times * span[places]) / (most - least)  # steps from the zero point to the lowest weight
            below = exact.round().astype(np.int64)
            start = np.maximum(below, 0)  # a block of positive weights starts above level 0
            fits = (np.abs(exact - below) < ON_GRID) & (start - below <= TOP) & (start + times * span[places] <= TOP)
            places, start, below = places[fits], start[fits], below[fits]
            kept[places], centers[places] = times * offsets[places] + start[:, None], start - below
            found[places] = True
    distance = kept[found] - centers[found, None]
    peak = np.abs(distance).argmax(-1)[:, None]
    scales[found] = (np.take_along_axis(weights[found], peak, -1) / np.take_along_axis(distance, peak, -1))[:, 0]
    levels[found] = pack_nibbles(kept[found].astype(np.uint8))
    if zeros is not None:
        flat = zeros.reshape(-1)
        flat[found] = centers[found]
        zeros[...] = flat.reshape(zeros.shape)


def pack_nibbles(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Pack rows of numbers from 0 to 15, two in a byte, the first in the low half.

    An odd row ends with 0.
    """
    import numpy as np

    even = np.pad(values.astype(np.uint8), ((0, 0), (0, values.shape[1] % 2)))
    packed: np.ndarray[Any, Any] = even[:, ::2] | even[:, 1::2] << 4
    return packed


def unpack_nibbles(packed: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Return the numbers that `pack_nibbles` packed, with the 0 that fills an odd row."""
    import numpy as np

    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
