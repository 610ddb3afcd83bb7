"""GGUF's blocks: rounding, and exact packing of weights that are on a type's grid."""

from typing import TYPE_CHECKING, Any

from tasks.shared.gguf.ggml import not_finite, quantize_rows
from tasks.shared.gguf.types import FLOATS
from tasks.shared.model.gguf_types import type_numbers
from tasks.shared.model.grids import BLOCK, IQ4_NL, MEAN_STEPS, TWO_BITS
from tasks.shared.model.widths import DIVISORS

if TYPE_CHECKING:
    import numpy as np

LEVELS = 8
ON_GRID = 0.02
"""Largest distance from a level, in steps, that counts as on the grid: the rounding error of a half-precision scale."""
BYTE_LEVELS = 128
ON_BYTE_GRID = 1e-3
"""The same for 8-bit levels at an unrounded scale: far less than 1 / 128, by which other levels at another scale differ."""
HALF_LIMIT = 2.0**15
"""Largest weight whose scale is looked for: half precision holds it."""
SAMPLE = 4096
"""Blocks at once in which 8-bit levels are looked for, and after which a tensor without any is left: most weights have none."""


def find_grid(
    blocks: "np.ndarray[Any, Any]",
) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Find blocks that need no rounding: small integers times one scale, as written by GPTQ.

    blocks: (blocks, 32), float32.
    Returns found (blocks,), bool; scales (blocks, 1), float16; levels (blocks, 32), int8 from -8 to 7.  Scales and levels are
    undefined where `found` is False.  The block's largest weight is a level times the scale; all fifteen levels are tried, the
    most likely first, on the blocks that remain.
    """
    import numpy as np

    found = np.zeros(len(blocks), bool)
    scales, levels = np.zeros((len(blocks), 1), np.float16), np.zeros(blocks.shape, np.int8)
    for level in [sign * size for size in range(LEVELS, 0, -1) for sign in (-1, 1) if sign * size < LEVELS]:
        places = np.flatnonzero(~found)
        part = blocks[places]
        peak = np.take_along_axis(part, np.abs(part).argmax(-1, keepdims=True), -1)
        scale = (peak / level).astype(np.float16)
        steps = part / np.where(scale == 0, 1, scale).astype(np.float32)
        nearest = steps.round()
        fits = (np.abs(steps - nearest).max(-1) < ON_GRID) & (nearest.min(-1) >= -LEVELS) & (nearest.max(-1) < LEVELS)
        fits &= scale[:, 0] != 0
        kept = nearest[fits].astype(np.int8)
        factor = common_factor(kept)
        scales[places[fits]], levels[places[fits]] = (peak[fits] * factor / level).astype(np.float16), kept // factor
        found[places[fits]] = True
    return found, scales, levels


def common_factor(levels: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Largest whole number that divides all levels of a block: (blocks, 1), at least 1.

    Levels 7 and -7 of a third, or a seventh, of the true step fit as well as 1 and -1 do, but its scale is no longer exact.
    """
    import numpy as np

    factor: np.ndarray[Any, Any] = np.gcd.reduce(np.abs(levels), axis=-1, keepdims=True)
    return np.maximum(factor, 1)


def find_byte_grid(
    blocks: "np.ndarray[Any, Any]",
) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Find blocks of 8-bit integers times one scale, as written by a symmetric quantizer.

    A block's largest weight is a level times the scale; all are tried, largest first.

    blocks: (blocks, 32), float32.
    Returns found (blocks,), bool; scales (blocks, 1), float16, of which more precise ones are rounded; levels (blocks, 32), int8.
    Scales and levels are undefined where `found` is False; nothing is found if the first SAMPLE blocks have none.
    """
    import numpy as np

    found = np.zeros(len(blocks), bool)
    scales, levels = np.zeros((len(blocks), 1), np.float16), np.zeros(blocks.shape, np.int8)
    for start in range(0, len(blocks), SAMPLE):
        part = slice(start, start + SAMPLE)
        found[part], scales[part], levels[part] = _byte_levels(blocks[part])
        if not found.any():
            break
    return found, scales, levels


def _byte_levels(
    blocks: "np.ndarray[Any, Any]",
) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Find 8-bit levels in a few blocks, as `find_byte_grid` does in all."""
    import numpy as np

    found = np.zeros(len(blocks), bool)
    scales, levels = np.zeros((len(blocks), 1), np.float16), np.zeros(blocks.shape, np.int8)
    peaks = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)
    reach = np.abs(peaks)
    usual = ((reach > 0) & (reach < HALF_LIMIT))[:, 0]
    for size in range(BYTE_LEVELS, 0, -1):
        places = np.flatnonzero(usual & ~found & ((size < BYTE_LEVELS) | (peaks[:, 0] < 0)))
        few = blocks[places, :2] * (size / reach[places])  # two weights, by which most scales are discarded
        places = places[(np.abs(few - few.round()) < ON_BYTE_GRID).all(-1)]
        if not len(places):
            continue
        steps = blocks[places] * (size / reach[places])
        nearest = steps.round()
        fits = (np.abs(steps - nearest) < ON_BYTE_GRID).all(-1)
        places, own = places[fits], nearest[fits].astype(np.int16)
        factor = np.gcd.reduce(own[:, :4], axis=-1, keepdims=True)  # mostly 1 already
        factor[factor[:, 0] != 1] = common_factor(own[factor[:, 0] != 1])
        scales[places], levels[places] = (reach[places] * factor / size).astype(np.float16), own // factor
        found[places] = scales[places, 0] != 0
        if found[usual].all():
            break
    return found, scales, levels


def find_offset_grid(
    blocks: "np.ndarray[Any, Any]",
) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]", "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Find blocks of a minimum plus 0 to 15 equal steps, as written by asymmetric GPTQ.

    blocks: (blocks, 32), float32.
    Returns found (blocks,), bool; scales and minima (blocks, 1), float16; levels (blocks, 32), uint8 from 0 to 15, which are
    undefined where `found` is False.  A block's range is a whole number of steps; all fifteen are tried, most steps first.
    """
    import numpy as np

    least = blocks.min(-1, keepdims=True)
    span = blocks.max(-1, keepdims=True) - least
    found = span[:, 0] == 0
    scales, levels = np.zeros((len(blocks), 1), np.float16), np.zeros(blocks.shape, np.uint8)
    for steps in range(2 * LEVELS - 1, 0, -1):
        places = np.flatnonzero(~found)
        scale = (span[places] / steps).astype(np.float16)
        exact = (blocks[places] - least[places]) / np.where(scale == 0, 1, scale).astype(np.float32)
        nearest = exact.round()
        fits = (np.abs(exact - nearest).max(-1) < ON_GRID) & (nearest.max(-1) == steps) & (scale[:, 0] != 0)
        kept = nearest[fits].astype(np.uint8)
        factor = common_factor(kept)
        scales[places[fits]] = (span[places[fits]] * factor / steps).astype(np.float16)
        levels[places[fits]], found[places[fits]] = kept // factor, True
    return found, scales, least.astype(np.float16), levels


def find_nonlinear_grid(
    blocks: "np.ndarray[Any, Any]",
) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Find blocks of IQ4_NL's levels times one scale, as a training on this grid writes them.

    blocks: (blocks, 32), float32.
    Returns found (blocks,), bool; scales (blocks, 1), float16; places of the levels (blocks, 32), uint8 from 0 to 15, which are
    undefined where `found` is False.  The block's largest weight may be any level.  No other tool writes such weights, so they must
    be equal bit by bit.
    """
    import numpy as np

    table = np.array(IQ4_NL, np.float32)
    limits = (table[1:] + table[:-1]) / 2
    found = np.zeros(len(blocks), bool)
    scales, levels = np.zeros((len(blocks), 1), np.float16), np.zeros(blocks.shape, np.uint8)
    for level in sorted(IQ4_NL, key=abs, reverse=True):
        places = np.flatnonzero(~found)
        part = blocks[places]
        peak = np.take_along_axis(part, np.abs(part).argmax(-1, keepdims=True), -1)
        scale = (peak / level).astype(np.float16)
        wide = scale.astype(np.float32)
        nearest = np.searchsorted(limits, part / np.where(wide == 0, 1, wide))
        fits = (table[nearest] * wide == part).all(-1) & (scale[:, 0] != 0)
        scales[places[fits]], levels[places[fits]] = scale[fits], nearest[fits].astype(np.uint8)
        found[places[fits]] = True
    return found, scales, levels


def nibbles(levels: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Pack 32 levels into 16 bytes: weights 0..15 in the low halves, 16..31 in the high halves.

    levels: (blocks, 32), uint8, 0 to 15.  Returns (blocks, 16), uint8.
    """
    halves = levels.reshape(len(levels), 2, BLOCK // 2)
    packed: np.ndarray[Any, Any] = halves[:, 0] | halves[:, 1] << 4
    return packed


def exact_q4_0(blocks: "np.ndarray[Any, Any]") -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Pack blocks on Q4_0's grid: a scale and 32 levels.

    blocks: (blocks, 32), float32.  Returns found (blocks,), bool, and their bytes (found, 18), uint8.
    """
    import numpy as np

    found, scales, levels = find_grid(blocks)
    shifted = (levels[found].astype(np.int16) + LEVELS).astype(np.uint8)
    return found, np.concatenate([scales[found].view(np.uint8), nibbles(shifted)], axis=-1)


def exact_q4_1(blocks: "np.ndarray[Any, Any]") -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Pack blocks on a Q4_1 grid: a scale, a minimum and 32 levels.

    blocks: (blocks, 32), float32.  Returns found (blocks,), bool, and their bytes (found, 20), uint8.
    """
    import numpy as np

    found, scales, least, levels = find_offset_grid(blocks)
    head = np.concatenate([scales[found], least[found]], axis=-1)
    return found, np.concatenate([head.view(np.uint8), nibbles(levels[found])], axis=-1)


def exact_iq4_nl(blocks: "np.ndarray[Any, Any]") -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Pack blocks on IQ4_NL's grid: a scale and the places of 32 levels.

    blocks: (blocks, 32), float32.  Returns found (blocks,), bool, and their bytes (found, 18), uint8.
    """
    import numpy as np

    found, scales, levels = find_nonlinear_grid(blocks)
    return found, np.concatenate([scales[found].view(np.uint8), nibbles(levels[found])], axis=-1)


def exact_q8_0(blocks: "np.ndarray[Any, Any]") -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Pack blocks on Q8_0's grid: a scale and 32 levels.

    blocks: (blocks, 32), float32.  Returns found (blocks,), bool, and their bytes (found, 34), uint8.
    """
    import numpy as np

    found, scales, levels = find_byte_grid(blocks)
    return found, np.concatenate([scales[found].view(np.uint8), levels[found].view(np.uint8)], axis=-1)


def find_two_bits(
    blocks: "np.ndarray[Any, Any]",
) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Find blocks of the levels -1, 0, 1 and 2 times one scale of either sign.

    A training on such a grid writes them.

    blocks: (blocks, size), float32.
    Returns found (blocks,), bool; scales (blocks, 1), float16; codes (blocks, size), uint8 from 0 to 3, which are undefined where `found`
    is False.  No other tool writes such weights, so they must be equal bit by bit.
    """
    import numpy as np

    found = np.zeros(len(blocks), bool)
    scales, codes = np.zeros((len(blocks), 1), np.float16), np.zeros(blocks.shape, np.uint8)
    for level in sorted((level for level in TWO_BITS if level), key=abs, reverse=True):
        places = np.flatnonzero(~found)
        part = blocks[places]
        peak = np.take_along_axis(part, np.abs(part).argmax(-1, keepdims=True), -1)
        scale = (peak / level).astype(np.float16)
        nearest = two_bit_levels(part, scale.astype(np.float32))
        fits = (nearest * scale.astype(np.float32) == part).all(-1) & ((scale[:, 0] != 0) | (peak[:, 0] == 0))
        scales[places[fits]], codes[places[fits]] = scale[fits], (nearest[fits] - TWO_BITS[0]).astype(np.uint8)
        found[places[fits]] = True
    return found, scales, codes


def two_bit_levels(blocks: "np.ndarray[Any, Any]", scales: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Return the nearest levels: (blocks, size), float32.

    blocks: (blocks, size).  scales: (blocks, 1), float32.
    """
    import numpy as np

    steps: np.ndarray[Any, Any] = np.rint(blocks / np.where(scales == 0, 1, scales))
    return steps.clip(TWO_BITS[0], TWO_BITS[-1], out=steps)


def round_two_bits(
    blocks: "np.ndarray[Any, Any]", columns: "np.ndarray[Any, Any]"
) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Return the scales of least weighted squared error, and the codes at them.

    llama.cpp rounds to these types by the largest weight of a block, which takes level 1: it leaves the fourth level unused, and most
    weights at zero.

    blocks: (blocks, size), float32.  columns: (blocks or 1, size), >= 0, weights of the squared errors.
    Returns scales (blocks, 1), float16, and codes (blocks, size), uint8.
    """
    import numpy as np

    mean = MEAN_STEPS * np.abs(blocks).mean(-1, keepdims=True)
    least, best = np.full((len(blocks), 1), np.inf, np.float32), np.zeros((len(blocks), 1), np.float16)
    for ratio in TRIED_RATIOS:
        for sign in (1, -1):
            scale = (sign * ratio * mean).astype(np.float16)
            wide = scale.astype(np.float32)
            error = (np.square(two_bit_levels(blocks, wide) * wide - blocks) * columns).sum(-1, keepdims=True)
            better = error < least
            least, best = np.where(better, error, least), np.where(better, scale, best)
    return best, (two_bit_levels(blocks, best.astype(np.float32)) - TWO_BITS[0]).astype(np.uint8)


def pack_q2_0(scales: "np.ndarray[Any, Any]", codes: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Return Q2_0's bytes: a scale, then four weights in a row per byte.

    scales: (blocks, 1), float16.  codes: (blocks, 64), uint8.  Returns (blocks, 18), uint8.
    """
    return _with_codes(scales, codes.reshape(len(codes), -1, 4), scale_first=True)


def pack_tq2_0(scales: "np.ndarray[Any, Any]", codes: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Return TQ2_0's bytes: of each 128 weights four that are 32 apart per byte, then a scale.

    scales: (blocks, 1), float16.  codes: (blocks, 256), uint8.  Returns (blocks, 66), uint8.
    """
    return _with_codes(scales, codes.reshape(len(codes), -1, 4, 32).swapaxes(-1, -2), scale_first=False)


def _with_codes(
    scales: "np.ndarray[Any, Any]", codes: "np.ndarray[Any, Any]", scale_first: bool
) -> "np.ndarray[Any, Any]":
    """Pack codes (blocks, ..., 4), of a byte each, before or after the scales."""
    import numpy as np

    packed = (codes << np.array([0, 2, 4, 6], np.uint8)).sum(-1, dtype=np.uint8).reshape(len(codes), -1)
    head = scales.view(np.uint8)
    return np.concatenate([head, packed] if scale_first else [packed, head], axis=-1)


def as_floats(weight: "np.ndarray[Any, Any]", scheme: str) -> "np.ndarray[Any, Any]":
    """Return the tensor as float32, float16, or the bytes of bfloat16, rounded to nearest."""
    import numpy as np
    from gguf.quants import BF16

    if scheme == "bf16":
        packed: np.ndarray[Any, Any] = BF16.quantize(weight.astype(np.float32, copy=False))
        return packed
    return weight.astype(np.float16 if scheme == "f16" else np.float32, copy=False)


EXACT = {"q8_0": exact_q8_0, "q4_0": exact_q4_0, "q4_1": exact_q4_1, "iq4_nl": exact_iq4_nl}
"""Types of 8 and 4 bits whose grid a calibrated quantizer, or a training, may have put weights on already."""
TWO_BIT_PACKING = {"q2_0": pack_q2_0, "tq2_0": pack_tq2_0}
TRIED_RATIOS = tuple(0.6 + 0.1 * step for step in range(10))
"""Scales that are tried for 2 bits, in units of MEAN_STEPS mean magnitudes."""
BLOCKS_AT_ONCE = 1 << 16
COPYING = frozenset({*EXACT, *TWO_BIT_PACKING, "mxfp4", "nvfp4"})
"""Types that take over weights on their grid; llama.cpp itself rounds to mxfp4 and nvfp4 without loss then."""
COPY_LIMITS = {"nvfp4": 2.0**-7}
"""Largest difference of a copied weight, in largest weights of its block: of 4-bit floats, which transformers unpacks in bfloat16."""
COPY_LIMIT = 2.0**-10
"""The same of all other types: scales, and minima of q4_1, are rounded to half precision."""
COPY_BLOCKS = {"nvfp4": 16}
ROWS_AT_ONCE = 64


def pack(
    weight: "np.ndarray[Any, Any]", scheme: str, importance: "np.ndarray[Any, Any] | None" = None
) -> "np.ndarray[Any, Any]":
    """Store a tensor in a GGUF type; blocks on its grid of 4 or 2 bits keep their integers.

    All others are rounded by llama.cpp; to q2_0 and tq2_0, whose fourth level it does not use, by `round_two_bits`.

    weight: (..., row), float32.  importance: (row,), >= 0, mean squared input of each column.
    Returns (..., row) floats, or (..., bytes of a row) uint8.

    llama.cpp's own Q4_0 puts a block's largest weight at level -8, and GPTQ may put that weight at any level; its Q4_1 puts the
    extremes at levels 0 and 15.  Rounding GPTQ's integers to another grid would undo the gain of the calibration.
    """
    if scheme in FLOATS:
        return as_floats(weight, scheme)
    if scheme in TWO_BIT_PACKING:
        return _two_bits(weight, scheme, importance)
    if scheme not in EXACT:
        return quantize_rows(weight, scheme, importance)
    found, kept = EXACT[scheme](weight.reshape(-1, BLOCK))
    if found.all():
        return kept.reshape(*weight.shape[:-1], -1)
    packed = quantize_rows(weight, scheme, importance)
    packed.reshape(len(found), -1)[found] = kept
    return packed


def is_copied(weight: "np.ndarray[Any, Any]", packed: "np.ndarray[Any, Any]", scheme: str) -> bool:
    """Return True if the packed rows are their weights but for the rounding of scales.

    weight: (..., row), float32.  packed: as `pack` returns it.  False for types that take nothing over, such as floats and k types.
    """
    import numpy as np
    from gguf.quants import dequantize

    if scheme not in COPYING:
        return False
    rows, bytes_ = weight.reshape(-1, weight.shape[-1]), packed.reshape(-1, packed.shape[-1])
    size, limit = COPY_BLOCKS.get(scheme, BLOCK), COPY_LIMITS.get(scheme, COPY_LIMIT)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        blocks = rows[part].reshape(-1, size)
        found = dequantize(bytes_[part], type_numbers()[scheme.upper()]).reshape(blocks.shape)
        if (np.abs(found - blocks) > limit * np.abs(blocks).max(-1, keepdims=True)).any():
            return False
    return True


def _two_bits(
    weight: "np.ndarray[Any, Any]", scheme: str, importance: "np.ndarray[Any, Any] | None"
) -> "np.ndarray[Any, Any]":
    """Pack a tensor in a 2-bit type, on its grid or rounded; see `pack`."""
    import numpy as np

    size = DIVISORS[scheme]
    blocks, row = weight.reshape(-1, size), weight.shape[-1] // size
    if not np.isfinite(blocks).all():
        raise not_finite()
    columns = np.ones((row, size), np.float32) if importance is None else importance.reshape(row, size)
    columns = np.maximum(columns, columns.mean() * 1e-6 + 1e-20).astype(np.float32)
    parts = []
    step = max(1, BLOCKS_AT_ONCE // row) * row
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        found, scales, codes = find_two_bits(part)
        if not found.all():
            rest = ~found
            own = np.tile(columns, (len(part) // row, 1))[rest]
            scales[rest], codes[rest] = round_two_bits(part[rest], own)
        parts.append(TWO_BIT_PACKING[scheme](scales, codes))
    return np.concatenate(parts).reshape(*weight.shape[:-1], -1)


def round_weights(
    weight: "np.ndarray[Any, Any]", scheme: str, importance: "np.ndarray[Any, Any] | None" = None
) -> "np.ndarray[Any, Any]":
    """Return a tensor as an engine reads it from a file of this type: (..., row), float32.

    See `pack` for the parameters.
    """
    import numpy as np
    from gguf.quants import dequantize

    found: np.ndarray[Any, Any] = dequantize(pack(weight, scheme, importance), type_numbers()[scheme.upper()])
    return found
