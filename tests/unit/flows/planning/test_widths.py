"""Widths at plan time: groups and blocks that do not divide a model's matrices are refused, all of them, with a way out."""

from pathlib import Path
from typing import Any

import pytest

from tasks.shared.gguf.writer import write_gguf
from tasks.shared.model.widths import DIVISORS, model_widths, shaped_config
from tests.tiny_llama import build_model, save_tiny
from tests.unit.flows.planning.test_families import problems, steps

INT4 = "quantize.rtn.RTN"


def test_every_width_that_a_group_does_not_divide_is_named(tmp_path: Path) -> None:
    chain = steps(int4=(INT4, "models.m", {"group_size": 96}))
    (message,) = problems(tmp_path, "llama", chain, intermediate_size=192)
    assert message.startswith(
        "steps.int4.group_size: for models.m, 96 does not divide 2 input sizes: hidden_size (in=64)"
    )
    assert "heads x head_dim (in=64)" in message and "fix: group_size=64 (or 0, which chooses it)" in message
    (message,) = problems(tmp_path, "llama", steps(int4=(INT4, "models.m", {})), intermediate_size=200)
    assert "32 does not divide 1 input sizes: intermediate_size (in=200)" in message


def test_the_widths_are_those_after_the_steps_before(tmp_path: Path) -> None:
    chain = steps(
        slim=("prune.weight_selection.WeightSelection", "models.m", {"intermediate_size": 40, "width": "leading"}),
        int4=(INT4, "slim", {}),
    )
    (message,) = problems(tmp_path, "llama", chain)
    assert "for slim, 32 does not divide 1 input sizes: intermediate_size (in=40)" in message


def test_a_gguf_file_s_header_tells_the_widths(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", build_model(intermediate_size=96, num_hidden_layers=1))
    write_gguf(source, tmp_path / "model.gguf", "f16")
    widths = {"hidden_size": 64, "heads x head_dim": 64, "intermediate_size": 96}
    assert model_widths(shaped_config(tmp_path / "model.gguf")) == model_widths(shaped_config(source)) == widths
    assert model_widths({}) == {}, "unknown widths are no reason"


@pytest.mark.parametrize(
    "config", [{"hidden_size": 64, "text_config": {"hidden_size": 128}}, {"n_embd": 128, "n_head": 4}]
)
def test_widths_of_a_text_model_inside_another_and_of_gpt_2(config: dict[str, Any]) -> None:
    assert model_widths(config)["intermediate_size"] == 512 and model_widths(config)["hidden_size"] == 128


def test_the_divisors_are_the_block_sizes_of_llama_cpp_s_types() -> None:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    known = {kind.name.lower(): size[0] for kind, size in GGML_QUANT_SIZES.items()}
    assert {name: known[name] for name in DIVISORS if name in known} == {
        name: divisor for name, divisor in DIVISORS.items() if name in known
    }
    assert GGMLQuantizationType.Q4_0.name.lower() in DIVISORS
