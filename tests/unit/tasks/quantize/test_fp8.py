"""FP8: weights are 8-bit floats, activations get scales as they are computed or from calibration."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tasks.quantize.fp8 import FP8, check_cache_scales
from tasks.shared.errors import ConfigError, TechniqueError
from tasks.shared.model.calibration import calibration_ids, split_calibration
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.technique import Inputs
from tests.settings_case import Case, Change
from tests.tiny_llama import empty_run, inputs_of, one_layer_inputs


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_weights_are_floats_of_eight_bits(trained: Inputs, tmp_path: Path, activations: str) -> None:
    out, run = empty_run(tmp_path)
    metrics = FP8(activations=activations, calibration_rows=8)(trained, out, run)
    assert 0 < float(metrics["kl_to_source"]) < 0.02
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert file.get_slice("model.layers.0.mlp.up_proj.weight").get_dtype() == "F8_E4M3"
        assert ("model.layers.0.mlp.up_proj.input_scale" in file.keys()) == (activations == "static")  # noqa: SIM118


@pytest.mark.parametrize("settings", [{"activations": "static"}, {"kv_cache": "fp8"}])
def test_calibrated_scales_need_a_corpus(trained: Inputs, tmp_path: Path, settings: dict[str, Any]) -> None:
    out, run = empty_run(tmp_path)
    name, value = next(iter(settings.items()))
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        FP8(**settings)(inputs_of(trained.one("model").path), out, run)
    (problem,) = FP8(**settings).plan_problems("steps.small", {"model": ("tuned",)}, {})
    assert "steps.small.inputs.calibration" in str(problem)
    assert not list(FP8().plan_problems("steps.small", {"model": ("tuned",)}, {}))


def test_scales_of_the_cache_cover_the_keys_and_values_of_the_calibration(trained: Inputs, tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    settings: dict[str, Any] = {"calibration_rows": 8, "max_tokens": 48, "check_rows": 2}
    FP8(kv_cache="fp8", **settings)(trained, out, run)
    source = trained.one("model").path
    rows, _ = split_calibration(trained.one("calibration").path, 8, 2)
    ids = calibration_ids(load_tokenizer(source, chat=False), rows, 48)
    model, largest = load_model(source), 0.0
    with torch.inference_mode():
        for row in ids:
            largest = max(
                largest, float(model(torch.tensor([row]), use_cache=True).past_key_values.layers[0].values.abs().max())
            )
    with safe_open(out / "model.safetensors", framework="pt") as file:
        scale = float(file.get_tensor("model.layers.0.self_attn.v_scale"))
    assert scale == pytest.approx(
        largest / 448, rel=0.05
    )  # 448: the largest E4M3 float; the layer's weights are rounded


def test_a_reloaded_model_rounds_its_keys_and_values(trained: Inputs, tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    FP8(kv_cache="fp8", calibration_rows=8)(trained, out, run)
    model, ids = load_model(out), torch.arange(3, 23)[None]
    with torch.inference_mode():
        before = model(ids).logits
        for layer in model.model.layers:
            layer.self_attn.v_scale.data *= 100  # far too coarse
        assert float((model(ids).logits - before).abs().max()) > 0.01


def test_a_layer_without_scales_of_its_cache_is_refused(trained: Inputs, tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    FP8(kv_cache="fp8", calibration_rows=2, check_rows=1)(trained, out, run)
    stored = load_file(out / "model.safetensors")
    stored["model.layers.0.self_attn.k_scale"].zero_()
    save_file(stored, out / "model.safetensors", {"format": "pt"})
    with pytest.raises(TechniqueError, match="7 of 8 scales of keys and values"):
        check_cache_scales(out)


CHANGES = {
    "activations": Change("static"),
    "kv_cache": Change("fp8"),
    "calibration_rows": Change(2, {"activations": "static"}),
    "max_tokens": Change(16),
    "check_rows": Change(1),  # only the figures know it
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    yield Case(folder, one_layer_inputs(folder), {"calibration_rows": 4, "max_tokens": 32, "check_rows": 2})
