"""Grids: nearest levels, scales that the formats store, and grids that are found again as they were."""

import ctypes
from typing import Any

import numpy as np
import pytest
import torch

from tasks.shared.gguf.blocks import EXACT, find_two_bits, pack
from tasks.shared.gguf.ggml import library
from tasks.shared.gguf.types import fitting_type
from tasks.shared.model.gguf_types import type_numbers
from tasks.shared.model.grids import (
    BLOCKS,
    IQ4_NL,
    SERVED,
    TWO_BITS,
    Grid,
    GridName,
    find_levels,
    group_scales,
    is_two_bits,
    nearest_levels,
    own_grid,
    round_to_grid,
    significant,
)
from tasks.shared.model.widths import DIVISORS

GRIDS: tuple[GridName, ...] = tuple(SERVED)
every_grid = pytest.mark.parametrize("name", GRIDS)


def matrix() -> torch.Tensor:
    """(64, 256) with rows of different sizes, and groups of zeros, of one sign, of tiny weights and of few."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 256, generator=draw) * torch.rand(64, 1, generator=draw) * 0.1
    weight[1, :32] = 0
    weight[2, :32], weight[3, :32] = weight[2, :32].abs(), -weight[3, :32].abs()
    weight[4, :32] *= 1e-6
    weight[5] *= torch.rand(256, generator=draw) < 0.1
    weight[6, :100] *= 0.05
    return weight


@every_grid
@pytest.mark.parametrize("size", [32, 128])
def test_levels_are_the_nearest_and_their_scales_are_stored_exactly(name: GridName, size: int) -> None:
    groups = matrix().unflatten(-1, (-1, size))
    scale, low = group_scales(groups, name)
    levels = nearest_levels(groups, scale, low, name)
    allowed = torch.tensor(IQ4_NL) if name == "iq4_nl" else low + torch.arange(4 if is_two_bits(name) else 16)
    distance = ((groups / scale)[..., None] - allowed[..., None, :]).abs().amin(-1)
    torch.testing.assert_close((groups / scale - levels).abs(), distance, rtol=0, atol=1e-3)
    assert torch.equal(scale.half().float(), scale), "GGUF"
    if name.startswith("int4"):
        assert torch.equal(scale.bfloat16().float(), scale), "compressed-tensors"
    if name == "int4_asymmetric":
        least = (levels * scale).amin(-1)
        assert torch.equal(least.half().float(), least), "the minimum of q4_1"
        assert ((low >= -15) & (low <= 0)).all(), "zero is a level"


@every_grid
@pytest.mark.parametrize("size", [32, 128])
def test_weights_on_a_grid_are_found_there_and_stay(name: GridName, size: int) -> None:
    weight, grid = matrix(), Grid(name, size)
    groups = weight.unflatten(-1, (-1, size))
    assert find_levels(groups, name) is None
    scale, low = group_scales(groups, name)
    levels = nearest_levels(groups, scale, low, name)
    rounded = round_to_grid(weight, grid)
    assert torch.equal(rounded, (levels * scale).flatten(-2))
    found = find_levels(rounded.unflatten(-1, (-1, size)), name)
    assert found is not None
    ordinary = levels.any(-1, keepdim=True)
    ordinary[5] = False  # few weights: other levels of another scale are the same weights
    if is_two_bits(name):  # so are ones of a scale and twos of its half
        ordinary &= levels.amax(-1, keepdim=True) == 2
    for one, wanted in zip(found, (scale, low, levels), strict=True):
        assert torch.equal(one * ordinary, wanted * ordinary)
    assert torch.equal(found[2] * found[0], levels * scale)
    assert torch.equal(round_to_grid(rounded, grid), rounded), "a second rounding"
    moved = rounded.clone()
    moved[7, 3] *= 1.001
    assert find_levels(moved.unflatten(-1, (-1, size)), name) is None


@pytest.mark.parametrize(
    ("name", "scheme", "size"),
    [
        (name, scheme, size)
        for name in GRIDS
        for scheme in SERVED[name]
        for size in ((BLOCKS[name],) if is_two_bits(name) else (32, 128))
        if (name, size) != ("q4_0", 128)
    ],
)
def test_llama_cpp_s_types_hold_a_grid_bit_by_bit(name: GridName, scheme: str, size: int) -> None:
    from gguf.quants import dequantize

    weight = round_to_grid(matrix(), Grid(name, size)).numpy()
    blocks: np.ndarray[Any, Any] = weight.reshape(-1, BLOCKS.get(name, 32))
    found = find_two_bits(blocks)[0] if is_two_bits(name) else EXACT[scheme](blocks)[0][blocks.any(-1)]
    assert found.all()
    packed = pack(weight, scheme)
    assert np.array_equal(dequantize(packed, type_numbers()[scheme.upper()]), weight)
    assert np.array_equal(read_by_llama_cpp(packed, scheme, weight.shape), weight), "a second reader"


def read_by_llama_cpp(packed: np.ndarray[Any, Any], scheme: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The weights of packed rows, by llama.cpp itself."""
    read = getattr(library(), f"dequantize_row_{scheme}")
    found, floats = np.empty(shape, np.float32), ctypes.POINTER(ctypes.c_float)
    read.argtypes = [ctypes.c_void_p, floats, ctypes.c_int64]
    read(packed.ctypes.data_as(ctypes.c_void_p), found.ctypes.data_as(floats), found.size)
    return found


def test_two_bit_scales_are_near_the_least_error_of_normal_weights() -> None:
    """A block's scale is one number, of which no other is 2 % better on average; the extremes leave most weights at zero."""
    for name in ("q2_0", "tq2_0"):
        groups = torch.randn(2000, BLOCKS[name], generator=torch.Generator().manual_seed(0))
        errors = {}
        for ratio in (0.8, 0.9, 1.0, 1.1, 1.2):
            scale, low = group_scales(groups, name, torch.tensor(ratio))
            errors[ratio] = float((nearest_levels(groups, scale, low, name) * scale - groups).square().mean())
        assert errors[1.0] <= 1.02 * min(errors.values()) and errors[1.0] < 0.15
        at_extremes = groups.abs().amax(-1, keepdim=True)
        ternary = (groups / at_extremes).round() * at_extremes
        assert errors[1.0] < 0.4 * float((ternary - groups).square().mean()), "llama.cpp's own rounding"


def test_rows_that_2_bit_blocks_do_not_fill_have_the_grid_of_the_type_that_the_export_gives_them() -> None:
    for name in BLOCKS:
        for row in (16, 32, 64, 96, 256, 576, 1536):
            grid, scheme = own_grid(name, row), fitting_type(name, row)
            if is_two_bits(name) or row % 32 == 0:
                assert (grid.name if grid else "") == scheme
            assert grid is None or (row % grid.group == 0 and grid.group == DIVISORS[grid.name])
    assert TWO_BITS == (-1, 0, 1, 2)


def test_significant_bits() -> None:
    values = torch.tensor([1.0, -1.9921875, 257.0, 3e-5, 0.0])
    assert torch.equal(
        significant(values, 8), torch.tensor([1.0, -1.9921875, 258.0, significant(values[3:4], 8).item(), 0.0])
    )
    assert torch.equal(significant(values, 23), values) or (significant(values, 23) - values).abs().max() < 1e-9
    random = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert ((significant(random, 7) / random - 1).abs() <= 2.0**-7).all()
    assert len({int(one) & 0x1FFFF for one in significant(random, 7).view(torch.int32)}) == 1
