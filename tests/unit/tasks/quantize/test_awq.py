"""AWQ: channels with large activations round finer, what the library leaves out is noticed, and other families are refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tasks.quantize.awq import AWQ
from tasks.quantize.smoothing import Pair, smoothing_asserted, smoothing_pairs
from tasks.shared.errors import TechniqueError
from tasks.shared.model.loading import load_model
from tasks.shared.technique import Inputs
from tests.families import FAMILIES
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, empty_run, one_layer_inputs


def test_outliers_round_finer_and_zero_points_survive(outlying: Inputs, tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    metrics = AWQ(calibration_rows=8, max_tokens=48, grid=4)(outlying, out, run)
    assert 0 < float(metrics["kl_to_source"]) < 0.8 * float(metrics["rounding_kl"])
    before, after = load_model(outlying.one("model").path), load_model(out)
    first, second = (model.model.layers[0].input_layernorm.weight for model in (before, after))
    assert float((second / first).detach().max() / (second / first).detach().min()) > 1.5, "the norm took the scales"
    weight = after.model.layers[0].mlp.up_proj.weight.detach().reshape(-1, 64)
    assert max(len(torch.unique(row)) for row in weight) <= 16


def test_pairs_are_those_of_the_family() -> None:
    names = {pair.smoothed: pair.readers for pair in smoothing_pairs(FAMILIES["gemma2"].build(), inner=True)}
    assert names["pre_feedforward_layernorm"] == ("mlp.gate_proj", "mlp.up_proj")
    assert "post_attention_layernorm" not in names and names["mlp.up_proj"] == ("mlp.down_proj",)
    grouped, plain = build_model(), build_model(num_key_value_heads=4)
    chained = Pair("self_attn.v_proj", ("self_attn.o_proj",))
    assert chained in smoothing_pairs(plain, inner=True) and chained not in smoothing_pairs(grouped, inner=True)
    with pytest.raises(TechniqueError, match="OLMo 2: its norms are unknown"):
        smoothing_pairs(FAMILIES["olmo2"].build(), inner=False)


def test_parts_that_the_library_skips_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    model = build_model()
    pairs = smoothing_pairs(model, inner=False)
    with torch.no_grad(), smoothing_asserted(model, pairs, always=True):
        model.model.layers[1].input_layernorm.weight *= 2
    assert "post_attention_layernorm: not scaled in any layer" in caplog.text
    with pytest.raises(TechniqueError, match="scaled none of them"), smoothing_asserted(model, pairs, always=True):
        pass
    with (
        pytest.raises(TechniqueError, match="not finite"),
        torch.no_grad(),
        smoothing_asserted(model, pairs, always=True),
    ):
        model.model.layers[0].input_layernorm.weight[0] = torch.nan


CHANGES = {
    "bits": Change(8),
    "group_size": Change(64),
    "symmetric": Change(True),
    "calibration_rows": Change(2),
    "max_tokens": Change(16),
    "grid": Change(5),
    "check_rows": Change(1),  # only the figures know it
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    yield Case(
        folder,
        one_layer_inputs(folder),
        {"group_size": 32, "calibration_rows": 4, "max_tokens": 32, "check_rows": 2, "grid": 3},
    )
