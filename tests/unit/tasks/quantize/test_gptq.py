"""GPTQ: the group size it chooses, the error it makes, the folder it writes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tasks.quantize import llm_compressor
from tasks.quantize.comparison import compare_with_rounding
from tasks.quantize.gptq import GPTQ
from tasks.quantize.rtn import RTN
from tasks.shared.errors import TechniqueError
from tasks.shared.model.agreement import logits_of, token_agreement
from tasks.shared.model.calibration import calibration_ids, split_calibration
from tasks.shared.model.linear_layers import input_sizes
from tasks.shared.model.loading import load_model
from tasks.shared.model.sizes import weight_bytes
from tasks.shared.model.widths import choose_group_size
from tasks.shared.technique import Inputs
from tests.families import FAMILIES
from tests.settings_case import Case, Change
from tests.tiny_llama import (
    build_model,
    build_tokenizer,
    empty_run,
    inputs_of,
    one_layer_inputs,
    save_tiny,
    write_corpus,
)


@pytest.mark.parametrize(("sizes", "chosen"), [((256, 1024), 128), ((576, 1536), 64), ((96, 32), 32)])
def test_group_size_is_the_largest_that_divides_every_layer(sizes: tuple[int, ...], chosen: int) -> None:
    assert choose_group_size({f"layer{size}": size for size in sizes}) == chosen


def test_ragged_group_is_refused_with_every_layer_and_a_way_out() -> None:
    with pytest.raises(TechniqueError) as caught:
        choose_group_size({"mlp.up": 576, "mlp.down": 1536, "attn.o": 576}, 128)
    message = str(caught.value)
    assert "mlp.up (in=576)" in message and "attn.o (in=576)" in message and "mlp.down" not in message
    assert "group_size=64" in message and "GGUF" in message


def test_no_size_fits() -> None:
    with pytest.raises(TechniqueError, match=r"odd \(in=40\)"):
        choose_group_size({"odd": 40})


def test_head_is_left_dense() -> None:
    assert not any("lm_head" in name for name in input_sizes(build_model(tie_word_embeddings=False)))


def test_matrices_that_would_stay_dense_are_refused() -> None:
    with pytest.raises(
        TechniqueError, match=r"8 matrices outside of torch.nn.Linear: transformer.h.0.attn.c_attn.weight"
    ):
        input_sizes(FAMILIES["gpt2"].build())


def test_a_layer_that_is_not_packed_is_noticed(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", build_model(num_hidden_layers=1))
    out, run = empty_run(tmp_path)
    RTN()(inputs_of(source), out, run)
    layers = input_sizes(load_model(source))
    llm_compressor.check_packed(out, layers)
    with pytest.raises(TechniqueError, match="7 of 8 linear layers are packed; these differ: model.more"):
        llm_compressor.check_packed(out, [*layers, "model.more"])


def test_group_size_is_checked_before_calibration(tmp_path: Path) -> None:
    source, corpus = save_tiny(tmp_path / "source"), write_corpus(tmp_path / "corpus")
    out, run = empty_run(tmp_path)
    with pytest.raises(TechniqueError, match="24 does not divide"):
        GPTQ(group_size=24)(inputs_of(source, corpus), out, run)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("symmetric", [True, False])
def test_held_out_divergence_is_not_above_rounding_s(trained: Inputs, tmp_path: Path, symmetric: bool) -> None:
    """On rows that were not calibrated on; the step's own figure for rounding is that of a model that was rounded."""
    out, run = empty_run(tmp_path, "gptq")
    metrics = GPTQ(symmetric=symmetric, calibration_rows=24, check_rows=8)(trained, out, run)
    rounded, rounded_run = empty_run(tmp_path, "rtn")
    model = trained.one("model").path
    RTN(symmetric=symmetric)(inputs_of(model), rounded, rounded_run)
    rows, held_out = split_calibration(trained.one("calibration").path, 24, 8)
    assert len(rows) == 24 and len(held_out) == 8 and not {row.id for row in rows} & {row.id for row in held_out}
    ids = calibration_ids(build_tokenizer(), held_out, 192)
    source = logits_of(load_model(model), ids)
    wanted = llm_compressor.check_reload(rounded, ids, source)["kl_to_source"]
    assert float(metrics["rounding_kl"]) == pytest.approx(wanted, rel=0.02)
    assert 0 < float(metrics["kl_to_source"]) < 0.9 * float(metrics["rounding_kl"])


def test_the_step_says_when_it_is_worse_than_rounding(caplog: pytest.LogCaptureFixture) -> None:
    assert compare_with_rounding(0.9, 1.0) == {"rounding_kl": 1.0}
    assert not caplog.text
    compare_with_rounding(1.1, 1.0)
    assert "worse than plain rounding on held-out rows" in caplog.text


def test_a_hessian_that_cannot_be_factored_is_one_message(trained: Inputs, tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    with pytest.raises(TechniqueError, match="not positive definite.*\n.*\n  fix: larger damping"):
        GPTQ(calibration_rows=1, max_tokens=8, damping=1e-6)(trained, out, run)
    assert list(out.iterdir()) == []


def test_a_small_split_is_shared_out_and_the_step_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = write_corpus(tmp_path, 8)
    rows, held_out = split_calibration(corpus, 64, 8)
    assert [len(rows), len(held_out)] == [6, 2] and not {row.id for row in rows} & {row.id for row in held_out}
    assert "6 rows instead of 64: the split has 8, and holds 2 of them out" in caplog.text
    (one,), checked = split_calibration(write_corpus(tmp_path, 1), 64, 8)
    assert checked == [one] and "checks the result on the same row" in caplog.text
    assert [len(part) for part in split_calibration(corpus, 0, 8)] == [0, 1]


def test_the_reload_is_exact_and_smaller(trained: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    out, run = empty_run(tmp_path)
    metrics = GPTQ(calibration_rows=4)(trained, out, run)
    assert metrics["group_size"] == 64
    assert weight_bytes(out) < 0.5 * weight_bytes(trained.one("model").path)
    assert json.loads((out / "config.json").read_text())["quantization_config"]["format"] == "pack-quantized"
    ids = [list(range(3, 60))]
    first, second = (logits_of(load_model(out), ids)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert list((tmp_path / "cwd").iterdir()) == [], "llm-compressor left files in the working directory"


def test_quantized_source_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    out, run = empty_run(tmp_path)
    with pytest.raises(TechniqueError, match="quantized already"):
        GPTQ()(inputs_of(folder, write_corpus(tmp_path / "corpus")), out, run)


def test_divergence_of_a_model_from_itself_is_zero() -> None:
    logits = torch.randn(5, 11)
    divergence, same = token_agreement(logits, logits + 3.0)  # a constant does not matter
    assert divergence.max() < 1e-6 and bool(same.all())
    assert token_agreement(logits, -logits)[0].min() > 0


CHANGES = {
    "bits": Change(8),
    "group_size": Change(64),
    "symmetric": Change(True),
    "calibration_rows": Change(3),
    "max_tokens": Change(16),
    "damping": Change(0.5),
    "actorder": Change("none"),
    "check_rows": Change(1),  # only the figures know it
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    yield Case(
        folder, one_layer_inputs(folder), {"group_size": 32, "calibration_rows": 4, "max_tokens": 32, "check_rows": 2}
    )
