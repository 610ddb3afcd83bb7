"""FP8: weights are 8-bit floats, activations get scales as they are computed or from calibration."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors import safe_open

from tasks.quantize.fp8 import FP8
from tasks.shared.errors import ConfigError
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


def test_static_scales_need_a_corpus(trained: Inputs, tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    with pytest.raises(ConfigError, match="activations=static"):
        FP8(activations="static")(inputs_of(trained.one("model").path), out, run)


CHANGES = {
    "activations": Change("static"),
    "calibration_rows": Change(2, {"activations": "static"}),
    "max_tokens": Change(16),
    "check_rows": Change(1),  # only the figures know it
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    yield Case(folder, one_layer_inputs(folder), {"calibration_rows": 4, "max_tokens": 32, "check_rows": 2})
