"""SmoothQuant: outliers of the activations move into the weights, and both are 8-bit integers once reloaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tasks.quantize.smoothquant import SmoothQuant
from tasks.shared.errors import TechniqueError
from tasks.shared.model.loading import load_model
from tasks.shared.model.sizes import weight_bytes
from tasks.shared.technique import Inputs
from tests.families import save_family
from tests.settings_case import Case, Change
from tests.tiny_llama import empty_run, inputs_of, one_layer_inputs, write_corpus


def test_outliers_move_into_the_weights(outlying: Inputs, tmp_path: Path) -> None:
    """Rounding both without smoothing is the step's own comparison."""
    out, run = empty_run(tmp_path)
    metrics = SmoothQuant(calibration_rows=8, max_tokens=48)(outlying, out, run)
    assert 0 < float(metrics["kl_to_source"]) < 0.5 * float(metrics["rounding_kl"])
    assert weight_bytes(out) < 0.6 * weight_bytes(outlying.one("model").path)
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert file.get_slice("model.layers.0.mlp.up_proj.weight").get_dtype() == "I8"
    layer, inputs = load_model(out).model.layers[0].mlp.up_proj, torch.randn(5, 64)
    exact = torch.nn.functional.linear(inputs, layer.weight)
    error = (layer(inputs) - exact).detach().abs().max() / exact.detach().abs().max()
    assert 1e-4 < float(error) < 0.05, "activations are rounded as well"


def test_norms_that_others_read_are_refused(tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    inputs = inputs_of(save_family(tmp_path / "model", "gpt_neox"), write_corpus(tmp_path / "corpus", 4))
    with pytest.raises(TechniqueError, match="no known norm that feeds only projections"):
        SmoothQuant()(inputs, out, run)


CHANGES = {
    "calibration_rows": Change(2),
    "max_tokens": Change(16),
    "strength": Change(0.8),
    "rounding": Change("gptq"),
    "check_rows": Change(1),  # only the figures know it
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    yield Case(folder, one_layer_inputs(folder), {"calibration_rows": 4, "max_tokens": 32, "check_rows": 2})
