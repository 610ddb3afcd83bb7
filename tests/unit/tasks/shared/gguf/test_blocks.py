"""Blocks: weights on a 4-bit grid keep their integers, all others are rounded by llama.cpp, led by importance."""

from typing import Any

import numpy as np
import pytest

from tasks.shared.errors import TechniqueError
from tasks.shared.gguf.blocks import find_byte_grid, find_grid, find_offset_grid, find_two_bits, pack, round_weights
from tasks.shared.gguf.ggml import quantize_rows


def unpacked(packed: np.ndarray[Any, Any], scheme: str) -> np.ndarray[Any, Any]:
    """The weights of packed rows, by the gguf package."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return np.array(dequantize(packed, GGMLQuantizationType[scheme.upper()]))


def half(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Values that bfloat16 holds: eight significant bits."""
    return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def on_grid() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Levels and weights of 40 blocks, as GPTQ writes them: the largest weight at any level, scales in bfloat16."""
    draw = np.random.default_rng(0)
    levels = draw.integers(-8, 8, (40, 32)).clip(-7, 6)
    return levels, (levels * half(draw.random((40, 1)) * 0.01 + 1e-4)).astype(np.float32)


def test_weights_on_a_grid_keep_their_levels_exactly() -> None:
    levels, weight = on_grid()
    found, _, kept = find_grid(weight)
    assert found.all() and np.array_equal(kept, levels)
    np.testing.assert_allclose(unpacked(pack(weight, "q4_0"), "q4_0"), weight, rtol=1e-3)
    rounded = unpacked(quantize_rows(weight, "q4_0"), "q4_0")
    assert not np.allclose(rounded, weight, rtol=0.05), "plain rounding moves them"


def test_weights_on_a_grid_with_zero_points_keep_their_levels_in_q4_1() -> None:
    """The minimum is a product of a bfloat16 scale and a small integer, to which half precision adds at most 2**-11 of it."""
    draw = np.random.default_rng(1)
    levels, zeros = draw.integers(0, 16, (40, 32)), draw.integers(0, 16, (40, 1))
    levels[0], levels[1] = 7, levels[1] % 3  # a single level; three of the sixteen
    scales = half(draw.random((40, 1)) * 0.01 + 1e-3)
    weight = ((levels - zeros) * scales).astype(np.float32)
    found, steps, least, kept = find_offset_grid(weight)
    assert found.all() and np.array_equal(least, weight.min(-1, keepdims=True).astype(np.float16))
    assert np.array_equal(steps[2:], scales[2:].astype(np.float16)), "the scale itself"
    assert np.array_equal(kept[2:], (levels - levels.min(-1, keepdims=True))[2:])
    limit = 2.0**-11 * np.abs(weight).max(-1, keepdims=True)
    assert (np.abs(unpacked(pack(weight, "q4_1"), "q4_1") - weight) <= limit).all()
    moved = np.abs(unpacked(quantize_rows(weight, "q4_1"), "q4_1") - weight)
    assert (moved > 0.1 * scales).any(), "plain rounding moves them"


def test_weights_on_a_grid_of_8_bits_keep_levels_and_scales_to_the_bit() -> None:
    """The largest may be at any level, -128 included; plain rounding puts it at 127."""
    draw = np.random.default_rng(2)
    levels = draw.integers(-128, 128, (2000, 32))
    levels[100:200] = draw.integers(-7, 8, (100, 32))  # 3 or 4 bits in a file of 8
    levels[:, 3] = -128 + np.arange(2000) % 64
    levels[100:200, 3], levels[100:200, 4] = -7, 6  # no common divisor
    scales = half(draw.random((2000, 1)) * 0.01 + 1e-4)
    weight = (levels * scales).astype(np.float32)
    weight[7] = 0
    found, steps, kept = find_byte_grid(weight)
    assert found.tolist() == [place != 7 for place in range(2000)]
    assert np.array_equal(steps[found], scales[found].astype(np.float16)) and np.array_equal(kept[found], levels[found])
    assert np.array_equal(unpacked(pack(weight, "q8_0"), "q8_0"), weight)
    rounded = unpacked(quantize_rows(weight, "q8_0"), "q8_0")
    assert not np.allclose(rounded, weight, rtol=0.05), "plain rounding moves them"


def test_scales_of_8_bits_that_half_precision_lacks_are_rounded_and_levels_kept() -> None:
    levels = np.random.default_rng(3).integers(-128, 128, (40, 32))
    scales = np.random.default_rng(4).random((40, 1)).astype(np.float32) * 0.01 + 1e-4
    found, steps, kept = find_byte_grid((levels * scales).astype(np.float32))
    assert found.all() and np.array_equal(kept, levels) and np.array_equal(steps, scales.astype(np.float16))
    strange = np.array([1e30, 1e-30, np.inf, np.nan], np.float32)[:, None] * np.ones((1, 32), np.float32)
    assert not find_byte_grid(strange)[0].any()


@pytest.fixture
def weight() -> np.ndarray[Any, Any]:
    draw = np.random.default_rng(0)
    return (draw.standard_normal((64, 256)) * draw.random((64, 1))).astype(np.float32)


def test_other_weights_are_rounded_as_ever(weight: np.ndarray[Any, Any]) -> None:
    blocks = weight.reshape(-1, 32)
    assert not any(find(blocks)[0].any() for find in (find_grid, find_offset_grid, find_byte_grid))
    schemes = ("q8_0", "q4_0", "q4_1")
    assert all(np.array_equal(pack(weight, scheme), quantize_rows(weight, scheme)) for scheme in schemes)
    for scheme, kind in (("f32", np.float32), ("f16", np.float16), ("bf16", np.uint8)):
        assert pack(weight, scheme).dtype == kind
    np.testing.assert_allclose(unpacked(pack(weight, "bf16"), "bf16"), weight, rtol=2**-8)


@pytest.mark.parametrize("scheme", ["q4_0", "iq4_nl", "q4_k", "q2_k", "q2_0", "tq2_0"])
def test_important_columns_come_out_closer(weight: np.ndarray[Any, Any], scheme: str) -> None:
    importance = np.ones(256, np.float32)
    importance[::8] = 100.0
    even, led = (
        ((unpacked(pack(weight, scheme, columns), scheme) - weight) ** 2)[:, ::8].mean()
        for columns in (np.ones(256, np.float32), importance)
    )
    assert led < 0.8 * even


def test_zeros_stay_zero_and_unimportant_columns_are_finite() -> None:
    zeros = np.zeros((2, 64), np.float32)
    assert not unpacked(pack(zeros, "q4_0", zeros[0]), "q4_0").any()
    assert np.isfinite(unpacked(pack(zeros + 0.5, "iq4_nl", zeros[0]), "iq4_nl")).all()


@pytest.mark.parametrize(
    ("scheme", "error"), [("f32", 0.0), ("f16", 2**-10), ("bf16", 2**-7), ("q8_0", 0.02), ("q5_0", 0.1)]
)
def test_rounded_weights_are_those_of_the_packed_ones(scheme: str, error: float) -> None:
    weight = np.sin(np.arange(256, dtype=np.float32)).reshape(2, 2, 64)
    found = round_weights(weight, scheme)
    assert found.dtype == np.float32 and np.array_equal(found, unpacked(pack(weight, scheme), scheme))
    assert np.abs(found - weight).max() <= error


@pytest.mark.parametrize("scheme", ["q2_0", "tq2_0"])
def test_two_bits_are_rounded_with_all_four_levels(weight: np.ndarray[Any, Any], scheme: str) -> None:
    """llama.cpp's own rounding leaves one of them unused, and has several times the error."""
    found, own = round_weights(weight, scheme), unpacked(quantize_rows(weight, scheme), scheme)
    error, theirs = (float(np.square(one - weight).mean()) for one in (found, own))
    assert error < 0.35 * theirs
    with pytest.raises(TechniqueError, match="not finite"):
        pack(np.full((1, 256), np.nan, np.float32), scheme)
    assert not round_weights(np.zeros((1, 256), np.float32), scheme).any()


def test_two_bit_blocks_on_the_grid_are_kept_beside_others_that_are_rounded() -> None:
    draw = np.random.default_rng(0)
    levels = draw.integers(-1, 3, (3, 64)).astype(np.float32)
    kept = levels * np.array([[0.5], [-0.25], [0.125]], np.float32)
    mixed = np.concatenate([kept, draw.standard_normal((3, 64)).astype(np.float32)])
    assert find_two_bits(mixed)[0].tolist() == [True] * 3 + [False] * 3
    assert np.array_equal(round_weights(mixed, "q2_0")[:3], kept)
