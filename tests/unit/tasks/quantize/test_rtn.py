"""Round to nearest: the written integers are those of the definition, and 8 bits beat 4."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
import torch

from flows.planning.sizes import size_of
from tasks.quantize.llm_compressor import quiet_llmcompressor
from tasks.quantize.rtn import RTN
from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Rows, Workload
from tasks.shared.model.loading import Dtype, load_model
from tasks.shared.model.sizes import weight_bytes
from tasks.shared.technique import Compute
from tests.settings_case import Case, Change
from tests.tiny_llama import empty_run, inputs_of, one_layer_inputs, save_tiny, write_corpus


@pytest.mark.parametrize("bits", [4, 8])
def test_every_weight_goes_to_the_nearest_of_its_group_s_steps(tmp_path: Path, bits: int) -> None:
    source, group = save_tiny(tmp_path / "source"), 32
    out, run = empty_run(tmp_path)
    metrics = RTN(bits=bits, group_size=group)(inputs_of(source), out, run)
    assert metrics["group_size"] == group and "kl_to_source" not in metrics
    before, after = load_model(source), load_model(out)
    after(torch.arange(3, 10)[None])  # unpacks
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.3.mlp.down_proj"):
        weight, written = (model.get_submodule(name).weight.detach().reshape(-1, group) for model in (before, after))
        step = weight.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 0.5)
        assert (
            (weight - written).abs() <= 0.51 * step + 2**-8 * weight.abs()
        ).all()  # half a step, and a scale in bfloat16
        assert max(len(torch.unique(row)) for row in written) <= 2**bits


def test_eight_bits_follow_the_source_closer_than_four(tmp_path: Path) -> None:
    inputs = inputs_of(save_tiny(tmp_path / "source"), write_corpus(tmp_path / "corpus"))
    results = {}
    for bits in (4, 8):
        out, run = empty_run(tmp_path, f"bits{bits}")
        results[bits] = (RTN(bits=bits)(inputs, out, run), weight_bytes(out))
    assert float(results[8][0]["kl_to_source"]) < 0.1 * float(results[4][0]["kl_to_source"])
    assert results[4][1] < results[8][1]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_forecast_of_the_size_is_that_of_the_files(tmp_path: Path, bits: Literal[4, 8], symmetric: bool) -> None:
    source, technique = save_tiny(tmp_path / "source"), RTN(bits=bits, symmetric=symmetric)
    out, run = empty_run(tmp_path)
    technique(inputs_of(source), out, run)
    made = technique.forecast(Workload({"model": (size_of(source),)}, Rows(), Compute(), 1e11)).size
    assert made is not None and made.bytes == pytest.approx(weight_bytes(out), rel=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_model_is_not_rounded_again_in_every_pass(tmp_path: Path, dtype: Dtype) -> None:
    out, run = empty_run(tmp_path)
    RTN(group_size=32)(inputs_of(save_tiny(tmp_path / "source")), out, run)
    model, ids = load_model(out, dtype), torch.arange(3, 40)[None]
    layers = [module for module in model.modules() if hasattr(module, "quantization_scheme")]
    assert layers and not any(layer.quantization_enabled for layer in layers)
    with torch.inference_mode():
        plain = model(ids).logits
        for layer in layers:
            layer.quantization_enabled = True
        assert torch.equal(model(ids).logits, plain), "it would change nothing"


def test_ragged_group_is_refused(tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    with pytest.raises(TechniqueError, match="group_size"):
        RTN(group_size=48)(inputs_of(save_tiny(tmp_path / "source")), out, run)


def test_a_failed_quantization_leaves_no_sink_of_llm_compressor_s_log(monkeypatch: pytest.MonkeyPatch) -> None:
    import llmcompressor  # noqa: F401 - its own sinks are there before
    from loguru import logger

    added: list[int] = []
    removed: list[int | None] = []
    add, remove = logger.add, logger.remove
    monkeypatch.setattr(logger, "add", lambda *given, **more: added.append(add(*given, **more)) or added[-1])
    monkeypatch.setattr(logger, "remove", lambda sink=None: (removed.append(sink), remove(sink)))

    def fail() -> None:
        with quiet_llmcompressor("quantize", 1):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert added and removed == [None, *added]


CHANGES = {
    "bits": Change(8),
    "group_size": Change(64),
    "symmetric": Change(True),
    "check_rows": Change(1),  # only the figures know it, and the next one
    "max_tokens": Change(16),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    yield Case(folder, one_layer_inputs(folder), {"group_size": 32, "check_rows": 2, "max_tokens": 32})
