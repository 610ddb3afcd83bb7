"""Importance of heads and neurons: what the scores equal."""

from typing import Any

import pytest
import torch

from tasks.prune.selection.activations import (
    BlockAxis,
    energy,
    measure_gates,
    measure_means,
    measure_moments,
    second_moments,
)
from tasks.prune.selection.importance import activation, contribution, fluctuation, magnitude, wanda
from tasks.prune.selection.losses import text_loss
from tasks.shared.model.calibration import batches
from tasks.shared.model.layout import decoder_layers
from tests.tiny_llama import build_model

IDS = [list(range(3, 20)), list(range(30, 39))]


@pytest.mark.parametrize("size", [1, 4])
def test_contribution_is_the_error_of_the_output_without_the_unit(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 5, 3 * size, generator=generator, dtype=torch.float64)
    weight = torch.randn(7, 3 * size, generator=generator, dtype=torch.float64)
    moments = second_moments(values, torch.ones(2, 5), 3)
    found = contribution(weight.view(7, 3, size), moments)
    for unit in range(3):
        without = values.clone()
        without[..., unit * size : (unit + 1) * size] = 0
        torch.testing.assert_close(found[unit], (values @ weight.T - without @ weight.T).square().sum())


@pytest.mark.parametrize("size", [1, 4])
def test_activation_is_the_energy_of_real_tokens(size: int) -> None:
    values, mask = torch.randn(2, 5, 3 * size), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    moments = second_moments(values, mask, 3)
    assert moments.shape == (3, size, size)
    torch.testing.assert_close(activation(moments), energy(values, mask, 3))


def test_wanda_is_weight_times_norm_and_magnitude_knows_no_norm() -> None:
    values = torch.tensor([[[3.0, 1.0], [4.0, 0.0]]])  # norms over tokens: 5 and 1
    outgoing = torch.tensor([[[1.0], [-2.0]], [[1.0], [4.0]]])
    assert wanda(outgoing, second_moments(values, torch.ones(1, 2), 2)).tolist() == [2 * 5.0, 6 * 1.0]
    incoming = torch.tensor([[1.0, 1.0], [2.0, 1.0]])
    assert magnitude(outgoing, incoming).tolist() == [2.0, 5.0]


@pytest.mark.parametrize("axis", ["heads", "neurons"])
def test_the_gradient_by_a_gate_is_the_slope_of_the_loss(axis: BlockAxis) -> None:
    """By central differences of the loss of each conversation, with a unit's outgoing weights scaled; padding counts for nothing."""
    model, units = build_model().double(), {"heads": 4, "neurons": 128}[axis]
    found = measure_gates(model, axis, units, IDS, batch_size=2, pad_id=0)
    apart = measure_gates(model, axis, units, IDS, batch_size=1, pad_id=0)
    torch.testing.assert_close(found, apart)
    layer: Any = decoder_layers(model)[1]
    weight = (layer.self_attn.o_proj if axis == "heads" else layer.mlp.down_proj).weight
    columns = slice(16, 32) if axis == "heads" else slice(1, 2)
    slopes = torch.zeros(2, dtype=torch.float64)
    for step in (1e-2, -1e-2):
        with torch.no_grad():
            before = weight[:, columns].clone()
            weight[:, columns] *= 1 + step
            slopes += torch.stack([text_loss(model, batch) for batch in batches(IDS, 1, 0)]) / (2 * step)
            weight[:, columns] = before
    torch.testing.assert_close(found[1][1], slopes.square().sum(), rtol=1e-2, atol=0)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("size", [1, 4])
def test_fluctuation_is_the_variance_of_each_channel_times_its_squared_weights(size: int) -> None:
    """Of a unit of one channel, also the error of the output if its mean takes its place; zero of one that is constant."""
    generator = torch.Generator().manual_seed(0)
    values = 2 + torch.randn(1, 9, 3 * size, generator=generator, dtype=torch.float64)
    values[..., :size] = 1000 / 3
    weight = torch.randn(7, 3 * size, generator=generator, dtype=torch.float64)
    first, second = values.sum((0, 1)).view(3, size), second_moments(values, torch.ones(1, 9), 3)
    found = fluctuation(weight.view(7, 3, size), first, second, 9)
    wanted = (values[0].var(0) * 8 * weight.square().sum(0)).view(3, size).sum(1)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-6)
    assert 0 <= float(found[0]) < 1e-7 * float(found[1])
    if size == 1:
        constant = values.clone()
        constant[..., 1] = values[..., 1].mean()
        torch.testing.assert_close(found[1], ((values - constant) @ weight.T).square().sum())


@pytest.mark.parametrize("axis", ["heads", "neurons"])
def test_moments_leave_padding_out(axis: BlockAxis) -> None:
    model, units = build_model(), {"heads": 4, "neurons": 128}[axis]
    together, apart = (measure_moments(model, axis, units, IDS, size, 0) for size in (2, 1))
    for one, other in zip(together, apart, strict=True):
        assert one.tokens == other.tokens == sum(map(len, IDS)) and one.first.shape == (units, one.second.shape[1])
        torch.testing.assert_close(one.first, other.first, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one.second, other.second, rtol=1e-4, atol=1e-4)
    means = measure_means(model, [axis], IDS, 2, 0)[axis]
    for one, mean in zip(together, means, strict=True):
        torch.testing.assert_close(mean, one.first.flatten() / one.tokens)
