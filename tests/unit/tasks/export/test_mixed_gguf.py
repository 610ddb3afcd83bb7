"""A file of several types: within its budget, no farther from its source than a single type, and recorded."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tasks.distill.sft import SFT
from tasks.export.mixed_gguf import MEASURED_FILE, MixedGguf, choose, measure
from tasks.shared.errors import TechniqueError
from tasks.shared.model.weights import read_gguf
from tasks.shared.technique import Inputs, Upstream
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, empty_run, inputs_of, one_layer_inputs, save_tiny, write_corpus

TYPES = ("iq4_nl", "q5_0", "q8_0")
SMALL: dict[str, Any] = {
    "types": TYPES, "sections": 1, "calibration_rows": 4, "max_tokens": 32, "importance_rows": 4, "prompts": 2, "tokens": 2, "min_top1": 0.0, "max_kl": 99.0,
}  # fmt: skip


def lines_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_at_equal_bytes_the_mix_is_no_farther_from_its_source_than_one_type(trained: Inputs, tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    metrics = MixedGguf(**SMALL | {"bits": 5.5, "sections": 4, "calibration_rows": 8})(trained, out, run)
    assert metrics["uniform"] == "q5_0" and float(metrics["kl_calibration"]) < float(metrics["kl_uniform"])
    assert int(metrics["tensor_bytes"]) <= int(metrics["budget_bytes"]) and float(metrics["bits"]) <= 5.5
    matrices = [tensor for tensor in read_gguf(out / "model.gguf").tensors if len(tensor.shape) > 1]
    assert sum(int(tensor.n_bytes) for tensor in matrices) == metrics["tensor_bytes"]
    lines = lines_of(out / "types.csv")
    chosen = {line["group"]: line for line in lines if line["chosen"] == "1"}
    assert len(lines) == 3 * len(chosen) == 3 * 13
    assert sum(int(line["bytes"]) for line in chosen.values()) == metrics["tensor_bytes"]
    assert sum(float(line["kl"]) for line in chosen.values()) == pytest.approx(float(metrics["kl_sum"]), rel=1e-4)
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in matrices}
    places = {
        "token_embd": "embedding", "blk.0.attn_q": "layer 0 attention", "blk.2.ffn_gate": "layer 2 gate_up", "blk.3.ffn_down": "layer 3 down",
    }  # fmt: skip
    assert {types[f"{name}.weight"] == chosen[group]["type"] for name, group in places.items()} == {True}
    assert len({line["type"] for line in chosen.values()}) > 1
    assert [line["layer"] for line in lines_of(out / "bits.csv")] == ["0", "1", "2", "3"]
    assert json.loads((out / "parity.json").read_text("utf-8"))["types"].keys() == set(types.values())


def test_too_small_a_budget_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    with pytest.raises(TechniqueError, match=r"(?s)smallest types take.*bits=4\.50"):
        MixedGguf(**SMALL | {"bits": 4.4})(one_layer_inputs(tmp_path), out, run)
    assert list(out.iterdir()) == []
    found = MixedGguf(**SMALL | {"bits": 4.4, "types": ("q8_0", "iq2_xxs")}).plan_problems("steps.mixed", {}, {})
    assert "iq2_xxs, which needs the importance" in str(next(found))
    low = list(MixedGguf(bits=3.0).plan_problems("steps.mixed", {}, {}))
    assert len(low) == 1 and "bits=3.4375" in str(low[0])


def test_widths_that_no_type_fills_are_refused_and_types_that_fit_nowhere_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    MixedGguf().check_widths({"hidden_size": 576, "intermediate_size": 1536})
    with pytest.raises(TechniqueError, match=r"no blocks of q3_k, q6_k fill rows of hidden_size \(576\)"):
        MixedGguf(types=("q3_k", "q6_k")).check_widths({"hidden_size": 576, "intermediate_size": 1536})
    out, run = empty_run(tmp_path)
    with caplog.at_level("INFO"):
        MixedGguf(**SMALL | {"types": ("q3_k", "q8_0"), "bits": 8.5})(one_layer_inputs(tmp_path), out, run)
    assert "q3_k is not offered to 4 of 4 groups" in caplog.text


def test_packed_weights_are_refused_since_their_integers_would_be_rounded_again(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "compressed-tensors"}}))
    out, run = empty_run(tmp_path)
    with pytest.raises(TechniqueError, match="quantized already"):
        MixedGguf(**SMALL)(inputs_of(tmp_path), out, run)


def test_a_model_on_a_grid_is_refused_at_plan_time() -> None:
    trained = Upstream(SFT(qat={"grid": "q4_0"}), {})  # type: ignore[arg-type]
    (found,) = MixedGguf().plan_problems("steps.mixed", {"model": ("tuned",)}, {"tuned": trained})
    assert "export/gguf with scheme=q4_0" in str(found)


def test_a_killed_run_goes_on_with_what_was_measured(tmp_path: Path) -> None:
    asked: list[str] = []

    def divergence(types: Any) -> float:
        asked.extend(types)
        if "b" in types:
            raise KeyboardInterrupt
        return 0.5

    sizes, file = {"a": {"q8_0": 8}, "b": {"q8_0": 8}}, tmp_path / MEASURED_FILE
    with pytest.raises(KeyboardInterrupt):
        measure(divergence, sizes, file)
    assert measure(lambda types: 0.25, sizes, file) == {"a": {"q8_0": 0.5}, "b": {"q8_0": 0.25}}
    assert asked == ["a", "b"]


def test_a_single_type_that_is_closer_is_taken_and_told(caplog: pytest.LogCaptureFixture) -> None:
    """Divergences that do not add up: together, the groups' choices are worse than one type."""
    sizes = {"a": {"q4_0": 4, "q5_0": 5, "q8_0": 8}, "b": {"q4_0": 4, "q5_0": 5, "q8_0": 8}}
    losses = {"a": {"q4_0": 0.5, "q5_0": 0.4, "q8_0": 0.1}, "b": {"q4_0": 0.2, "q5_0": 0.2, "q8_0": 0.2}}
    chosen, figures = choose(lambda types: 0.6 if "q5_0" in types.values() else 0.9, sizes, losses, 12)
    assert chosen == {"a": "q5_0", "b": "q5_0"} and figures["kl_calibration"] == figures["kl_uniform"] == 0.6
    assert "is closer to the source" in caplog.text
    assert choose(lambda types: 0.3, sizes, losses, 12)[0] == {"a": "q8_0", "b": "q4_0"}


CHANGES = {
    "bits": Change(8.5),
    "types": Change(("q4_0", "q8_0")),
    "sections": Change(2),
    "calibration_rows": Change(2),
    "max_tokens": Change(16),
    "importance_rows": Change(0),
    "prompts": Change(3),
    "tokens": Change(3),
    "top": Change(8),
    "min_top1": Change(0.01),
    "max_kl": Change(98.0),
    "split_bytes": Change(20_000),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    model = save_tiny(folder / "model", build_model(num_hidden_layers=2))
    yield Case(folder, inputs_of(model, write_corpus(folder / "corpus", rows=6)), SMALL)
