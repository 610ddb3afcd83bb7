"""FP4: weights are 4-bit floats in groups of 16 (nvfp4) or 32 (mxfp4), activations too if set."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tasks.quantize.fp4 import FP4
from tasks.shared.errors import ConfigError, TechniqueError
from tasks.shared.model.loading import load_model
from tasks.shared.technique import Inputs
from tests.settings_case import Case, Change
from tests.tiny_llama import empty_run, inputs_of, one_layer_inputs

LEVELS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
LAYER = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("activations", ["none", "dynamic"])
@pytest.mark.parametrize("kind", ["nvfp4", "mxfp4"])
def test_the_written_model_answers_like_its_source(
    trained: Inputs, tmp_path: Path, kind: str, activations: str
) -> None:
    out, run = empty_run(tmp_path)
    metrics = FP4(format=kind, activations=activations, calibration_rows=8)(trained, out, run)
    assert 0 < float(metrics["kl_to_source"]) < (0.3 if activations == "none" else 1)
    with safe_open(out / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        assert file.get_slice(f"{LAYER}.weight_packed").get_dtype() == "U8"
    assert (f"{LAYER}.input_global_scale" in names) == (kind == "nvfp4" and activations == "dynamic")


@pytest.mark.parametrize("kind", ["nvfp4", "mxfp4"])
def test_stored_codes_times_scales_are_what_transformers_computes_with(
    trained: Inputs, tmp_path: Path, kind: str
) -> None:
    out, run = empty_run(tmp_path)
    FP4(format=kind)(trained, out, run)
    stored = load_file(out / "model.safetensors")
    packed = stored[f"{LAYER}.weight_packed"]
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(1).long()  # the lower half of a byte comes first
    values = LEVELS[codes & 7] * torch.where(codes >= 8, -1.0, 1.0)
    scales = stored[f"{LAYER}.weight_scale"].float()  # E4M3 times one float of the matrix, or E8M0: an exponent
    scales = scales / stored[f"{LAYER}.weight_global_scale"] if kind == "nvfp4" else torch.exp2(scales - 127)
    expected = (values.unflatten(1, (scales.shape[1], -1)) * scales[..., None]).flatten(1)
    with torch.inference_mode():
        layer = load_model(out).get_submodule(LAYER)
        found = layer(torch.eye(expected.shape[1])).T
    assert torch.allclose(found, expected, rtol=2**-7, atol=0)


def test_activations_of_nvfp4_need_a_corpus(trained: Inputs, tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    technique = FP4(activations="dynamic")
    with pytest.raises(ConfigError, match="activations=none"):
        technique(inputs_of(trained.one("model").path), out, run)
    (problem,) = technique.plan_problems("steps.small", {"model": ("tuned",)}, {})
    assert "steps.small.inputs.calibration" in str(problem)
    assert not list(FP4(format="mxfp4", activations="dynamic").plan_problems("steps.small", {"model": ("tuned",)}, {}))


def test_the_plan_refuses_widths_that_groups_do_not_divide() -> None:
    FP4().check_widths({"hidden_size": 48})
    with pytest.raises(TechniqueError, match=r"mxfp4 have 32 weights.*hidden_size \(in=48\)"):
        FP4(format="mxfp4").check_widths({"hidden_size": 48, "intermediate_size": 64})


CHANGES = {
    "format": Change("mxfp4"),
    "activations": Change("dynamic"),
    "calibration_rows": Change(2, {"activations": "dynamic"}),
    "max_tokens": Change(16),
    "check_rows": Change(1),  # only the figures know it
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    yield Case(folder, one_layer_inputs(folder), {"calibration_rows": 4, "max_tokens": 32, "check_rows": 2})
