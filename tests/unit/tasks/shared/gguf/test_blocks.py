"""Fitted 4-bit scales: on the grid, never worse than plain rounding, and led by importance."""

import numpy as np
import pytest
import torch

from tasks.shared.gguf.blocks import find_grid, grids_kept, nearest_q4_0


def plain(weight: torch.Tensor) -> torch.Tensor:
    """What plain Q4_0 rounding makes of a weight."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    kind = GGMLQuantizationType.Q4_0
    return torch.from_numpy(np.array(dequantize(quantize(weight.numpy(), kind), kind)))


def on_grid(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels and weights of 40 blocks, as GPTQ writes them: the largest weight at any level, scales in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(-8, 8, (40, 32), generator=generator).clamp(-7, 6)
    scales = (torch.rand(40, 1, generator=generator) * 0.01 + 1e-4).bfloat16().float()
    return levels, levels * scales


def test_weights_on_a_grid_keep_their_levels_exactly() -> None:
    levels, weight = on_grid()
    found, scales, kept = find_grid(weight.numpy())
    assert found.all()
    assert np.array_equal(kept, levels.numpy())
    with grids_kept():
        packed = plain(weight)
    assert torch.allclose(packed, weight, rtol=1e-3, atol=0)
    assert not torch.allclose(plain(weight), weight, rtol=0.05), "plain rounding moves them"


def test_other_weights_are_rounded_as_ever(weight: torch.Tensor) -> None:
    assert not find_grid(weight.reshape(-1, 32).numpy())[0].any()
    with grids_kept():
        kept = plain(weight)
    assert torch.equal(kept, plain(weight))


@pytest.fixture
def weight() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(64, 256) * torch.rand(64, 1)


def test_the_result_lies_on_the_grid(weight: torch.Tensor) -> None:
    fitted = nearest_q4_0(weight)
    assert torch.equal(plain(fitted), fitted)


def test_error_is_smaller_than_plain_rounding_s(weight: torch.Tensor) -> None:
    assert ((nearest_q4_0(weight) - weight) ** 2).mean() < 0.95 * ((plain(weight) - weight) ** 2).mean()


def test_important_columns_come_out_closer(weight: torch.Tensor) -> None:
    importance = torch.ones(256)
    importance[::8] = 100.0
    even, led = (((nearest_q4_0(weight, values) - weight) ** 2)[:, ::8].mean() for values in (None, importance))
    assert led < 0.8 * even


def test_zeros_stay_zero() -> None:
    assert torch.equal(nearest_q4_0(torch.zeros(2, 64)), torch.zeros(2, 64))
