"""Comparison with rounding: weights are rounded while their module runs, and one model is in memory at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.quantize.comparison import rounded
from tasks.quantize.rtn import RTN
from tasks.shared.model import loading
from tasks.shared.model.agreement import logits_of
from tasks.shared.model.linear_layers import input_sizes
from tests.tiny_llama import build_model, empty_run, inputs_of, save_tiny, write_corpus

ARGUMENTS = {"weights": {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}}
IDS = [[5, 9, 40, 17, 3], [8, 8, 120]]


def test_a_rounded_model_answers_like_the_written_one(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "model")
    out, run = empty_run(tmp_path)
    RTN(group_size=32)(inputs_of(source), out, run)
    model = loading.load_model(source)
    with rounded(model, ARGUMENTS, input_sizes(model)):
        found = logits_of(model, IDS)
    for one, other in zip(found, logits_of(loading.load_model(out), IDS), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fails", [False, True])
def test_weights_are_the_source_s_again_after_each_module(fails: bool) -> None:
    model: Any = build_model()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    seen = []

    def look(part: Any, given: Any, output: Any) -> None:
        seen.append(float((part.weight - before["model.layers.0.mlp.down_proj.weight"]).abs().max()))
        if fails:
            raise RuntimeError("of the test")

    hook = model.model.layers[0].mlp.down_proj.register_forward_hook(look)
    with rounded(model, ARGUMENTS, input_sizes(model)):
        if fails:
            with pytest.raises(RuntimeError, match="of the test"):
                logits_of(model, IDS)
        else:
            logits_of(model, IDS)
    hook.remove()
    assert seen and all(change > 1e-4 for change in seen), "rounded while it runs"
    assert all(weight.equal(before[name]) for name, weight in model.named_parameters())


def test_the_source_is_gone_before_the_written_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, left = list[Any](), list[int]()
    plain = loading.load_model

    def load(*given: Any, **named: Any) -> Any:
        left.append(sum(weight.numel() for model in loaded for weight in (*model.parameters(), *model.buffers())))
        loaded.append(plain(*given, **named))
        return loaded[-1]

    monkeypatch.setattr(loading, "load_model", load)
    source = save_tiny(tmp_path / "model")
    out, run = empty_run(tmp_path)
    RTN(group_size=32, check_rows=2)(inputs_of(source, write_corpus(tmp_path / "corpus", 8)), out, run)
    assert left == [0, 0], "llm-compressor keeps the model; its weights are dropped"
