"""Logits of a source: the first module that breaks them is named, before work is spent on the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.quantize.autoround import AutoRound
from tasks.quantize.awq import AWQ
from tasks.quantize.bitsandbytes import BitsAndBytes
from tasks.quantize.cast import Cast
from tasks.quantize.gptq import GPTQ
from tasks.quantize.gptq_levels import GptqLevels
from tasks.quantize.smoothquant import SmoothQuant
from tasks.shared.errors import TechniqueError
from tasks.shared.model.agreement import logits_of
from tests.tiny_llama import build_model, empty_run, inputs_of, overflowing_model, save_tiny, write_corpus


def big(place: str) -> Any:
    """A model with finite weights, of which one matrix gives more than float32 holds."""
    model = build_model()
    weight = model.get_submodule(place).weight
    weight.data = 3e38 * weight.data.sign()
    return model


@pytest.mark.parametrize(
    ("model", "first"),
    [
        (lambda: big("model.layers.2.mlp.down_proj"), r"model\.layers\.2\.mlp\.down_proj"),
        (lambda: big("model.layers.1.self_attn.v_proj"), r"model\.layers\.1\.self_attn\.v_proj"),
        (overflowing_model, "model.norm|lm_head"),
    ],
    ids=["feed-forward", "attention", "head"],
)
def test_the_first_module_that_is_not_finite_is_named(model: Callable[[], Any], first: str) -> None:
    with pytest.raises(TechniqueError, match=rf"the source's logits are not finite.* those of ({first})\n"):
        logits_of(model(), [[5, 9, 40], [8, 120]])


def test_finite_logits_are_those_of_each_row_alone() -> None:
    model, rows = build_model(), [[5, 9, 40], [8, 120]]
    for row, logits in zip(rows, logits_of(model, rows), strict=True):
        assert torch.equal(logits, model(torch.tensor([row])).logits[0])


@pytest.mark.parametrize("technique", [GPTQ, AWQ, SmoothQuant, AutoRound, GptqLevels, Cast, BitsAndBytes])
def test_a_step_blames_the_source_and_writes_nothing(tmp_path: Path, technique: Any) -> None:
    out, run = empty_run(tmp_path)
    inputs = inputs_of(save_tiny(tmp_path / "model", overflowing_model()), write_corpus(tmp_path / "corpus", 8))
    with pytest.raises(TechniqueError, match="model: the source's logits are not finite"):
        technique(check_rows=1)(inputs, out, run)
    assert not list(out.iterdir())
