"""AutoRound: learned rounding is closer than plain rounding, and its levels arrive unchanged in the files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
import torch

from flows.planning.sizes import size_of
from tasks.quantize.autoround import AutoRound
from tasks.quantize.learned_rounding import Levels, Tuning, learn_rounding, levels_kept, settle_levels
from tasks.shared.forecast import Rows, Workload
from tasks.shared.model.loading import load_model
from tasks.shared.model.sizes import weight_bytes
from tasks.shared.technique import Compute, Inputs
from tests.settings_case import Case, Change
from tests.tiny_llama import (
    build_model,
    build_tokenizer,
    empty_run,
    inputs_of,
    one_layer_inputs,
    save_tiny,
    write_corpus,
)  # fmt: skip

LAYER = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (3, True)])
def test_learned_rounding_is_closer_than_plain_rounding(
    trained: Inputs, tmp_path: Path, bits: Literal[2, 3], symmetric: bool
) -> None:
    out, run = empty_run(tmp_path)
    technique = AutoRound(
        bits=bits, symmetric=symmetric, group_size=32, iterations=30, calibration_rows=16, max_tokens=48, batch_size=4
    )
    metrics = technique(trained, out, run)
    assert 0 < float(metrics["kl_to_source"]) < 0.8 * float(metrics["rounding_kl"])
    weight = load_model(out).get_submodule(LAYER).weight.detach().reshape(-1, 32)
    assert max(len(torch.unique(row)) for row in weight) <= 2**bits


def test_padding_is_no_part_of_the_loss() -> None:
    """Rows of different lengths, padded with one token or another, learn the same rounding."""
    ids = [list(range(10, 10 + length)) for length in (6, 40, 12, 8)]
    found = []
    for pad in (0, 400):
        model, tokenizer = build_model(num_hidden_layers=1), build_tokenizer()
        tokenizer.pad_token_id = pad
        found.append((learn_rounding(model, tokenizer, ids, Tuning(2, 32, False, 30, 2, 0.0, 0), Compute()), model))
    (first, model), (second, other) = found
    assert all(torch.equal(first[name].zero, second[name].zero) for name in first)
    assert torch.equal(model.get_submodule(LAYER).weight, other.get_submodule(LAYER).weight)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_weights_settle_on_their_levels(bits: int, symmetric: bool) -> None:
    half, layer = 2 ** (bits - 1), torch.nn.Linear(64, 8)
    integers = torch.randint(-half, half, (8, 2, 32)).float()
    zero = torch.zeros(8, 2) if symmetric else torch.randint(-half, half, (8, 2)).float()
    scale = (torch.rand(8, 2) + 0.5).half()
    scale[0, 0] = 0  # a group of zeros
    layer.weight.data = ((integers - zero[..., None]) * scale.float()[..., None]).flatten(1).bfloat16()
    layer.scale, layer.zp = scale, half if symmetric else zero + half  # type: ignore[assignment]
    found = settle_levels(layer, Tuning(bits, 32, symmetric, 1, 1, 0.0, 0))
    assert torch.equal(found.zero, zero)
    assert torch.equal(found.scale, scale.float().bfloat16().float())
    wanted = (integers - zero[..., None]) * found.scale[..., None]
    assert torch.equal(layer.weight, wanted.flatten(1))


def test_levels_replace_those_of_extremes() -> None:
    model = build_model()
    part = model.get_submodule(LAYER)
    part.weight_scale, part.weight_zero_point = torch.zeros(128, 2), torch.zeros(128, 2, dtype=torch.int8)
    with levels_kept(model, {LAYER: Levels(torch.full((128, 2), 0.5), torch.full((128, 2), -3.0))}):
        part.weight_scale += 1
    assert part.weight_scale.unique().tolist() == [0.5]
    assert part.weight_zero_point.unique().tolist() == [-3] and part.weight_zero_point.dtype == torch.int8


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_forecast_of_the_size_is_that_of_the_files(tmp_path: Path, bits: Literal[2, 3, 4]) -> None:
    """Of a model large enough that names of tensors are a small part; 3.2 bits instead of 3 would be 5 % more."""
    model = build_model(num_hidden_layers=1, hidden_size=256, intermediate_size=2048)
    inputs = inputs_of(save_tiny(tmp_path / "model", model), write_corpus(tmp_path / "corpus"))
    out, run = empty_run(tmp_path)
    technique = AutoRound(bits=bits, iterations=1, calibration_rows=1, check_rows=1, max_tokens=8, batch_size=1)
    technique(inputs, out, run)
    source = size_of(inputs.one("model").path)
    made = technique.forecast(Workload({"model": (source,)}, Rows(), Compute(), 1e11)).size
    assert made is not None and made.bytes == pytest.approx(weight_bytes(out), rel=0.01)


CHANGES = {
    "bits": Change(4),
    "group_size": Change(32),
    "symmetric": Change(True),
    "calibration_rows": Change(2),
    "max_tokens": Change(16),
    "iterations": Change(12),
    "batch_size": Change(1),
    "learning_rate": Change(0.05),
    "check_rows": Change(1),  # only the figures know it
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    settings = {"bits": 2, "calibration_rows": 4, "max_tokens": 32, "check_rows": 2, "iterations": 6, "batch_size": 2}
    yield Case(folder, one_layer_inputs(folder), settings)
