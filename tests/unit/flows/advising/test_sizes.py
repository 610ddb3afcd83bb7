"""Sizes by precision, the KV cache, and the share of layers to drop: arithmetic by hand against the project's forecasts."""

import json
from pathlib import Path

import pytest

from flows.advising.model_at_hand import ModelAtHand, cache_bytes, find_model
from flows.advising.precisions import EIGHT, FOUR, SIXTEEN, form_of, forms
from flows.advising.recipe import merge_steps
from flows.advising.rule_table import RULES
from flows.advising.rules import apply, refusals
from flows.advising.situation import Situation, find_facts
from flows.planning.catalog import Entry, catalog
from tasks.shared.errors import ConfigError, ModelError
from tasks.shared.forecast import Dimensions, Size
from tasks.shared.technique import Compute
from tests.families import FAMILIES
from tests.tiny_llama import save_tiny

TECHNIQUES: dict[str, Entry] = {f"{entry.stage}/{entry.name}": entry for entry in catalog()}
LLAMA_8B = Dimensions(
    layers=32, width=4096, feed_forward=14336, heads=32, query=4096, value=1024, vocabulary=128_256
)  # Llama-3.1-8B's config.json
SIZE_8B = Size(8_030_261_248, 16_060_522_496, 2 * 128_256 * 4096, LLAMA_8B)


def model(shape: Dimensions = LLAMA_8B, **config: object) -> ModelAtHand:
    return ModelAtHand("one", Size(1e9, 2e9, 0, shape), config=config)


def test_the_cache_of_an_8b_model_is_128_kib_per_token() -> None:
    """2 (keys, values) x 32 layers x 8 heads x 128 x 2 bytes = 131,072 bytes a token: 1.07 GB at 8,192 tokens."""
    assert cache_bytes(model(), 1, 1) == 131_072
    assert cache_bytes(model(), 8192, 1) == 2**30
    assert cache_bytes(model(), 8192, 4) == 4 * 2**30


def test_sliding_layers_keep_their_window_where_the_engines_do() -> None:
    kinds = ["sliding_attention", "full_attention"] * 16
    token = 2 * 1024 * 2
    windowed = model(layer_types=kinds, sliding_window=512, model_type="gemma2")
    assert cache_bytes(windowed, 2048, 1) == token * (16 * 512 + 16 * 2048)
    assert cache_bytes(windowed, 100, 1) == token * 32 * 100
    ignored = model(layer_types=kinds, sliding_window=512, model_type="mistral")
    assert cache_bytes(ignored, 2048, 1) == token * 32 * 2048


@pytest.mark.parametrize("config", [{"kv_lora_rank": 512}, {"layer_types": ["linear_attention"] * 32}])
def test_what_caches_something_else_is_not_guessed(config: dict[str, object]) -> None:
    assert cache_bytes(model(**config), 2048, 1) is None
    assert cache_bytes(find_model("8B"), 2048, 1) is None


def test_a_count_has_the_bits_of_each_type() -> None:
    size = find_model("8B").size
    found = {form.precision.name: form.bits for form in forms(size, "cpu", TECHNIQUES)}
    assert found == {
        "bf16": 16.0, "q8_0": 8.5, "q6_k": 6.5625, "q5_k": 5.5, "q5_0": 5.5, "q4_1": 5.0, "q4_k": 4.5, "q4_0": 4.5, "iq4_nl": 4.5, "q3_k": 3.4375,
        "q2_k": 2.625,
    }  # fmt: skip
    assert find_model("0.5b").size.parameters == 5e8 and find_model("135M").size.bytes == 2.7e8


def test_weights_of_a_known_shape_by_hand() -> None:
    """iq4_nl: layers 4.5 bits, embedding and head 8.5, norms 32, and 36 bytes of header per token.  int4: groups of 128 with zero points, bf16 embedding."""
    size = SIZE_8B
    norms = 4096 * 65
    layers = size.parameters - size.outer - norms
    by_hand = (4.5 * layers + 8.5 * size.outer) / 8 + 4 * norms + 36 * 128_256
    found = form_of(size, FOUR["cpu"], TECHNIQUES)
    assert found is not None and found.bytes == pytest.approx(by_hand)
    packed = form_of(size, FOUR["gpu"], TECHNIQUES)
    assert packed is not None and packed.bytes == pytest.approx(
        (4 + (16 + 4) / 128) / 8 * (size.parameters - size.outer) + 2 * size.outer
    )
    assert [form_of(size, one, {}) for one in (SIXTEEN, EIGHT["gpu"])] == [None, None], "no technique, no row"


def test_forms_are_those_of_the_hardware() -> None:
    names = {
        hardware: [form.precision.name for form in forms(SIZE_8B, hardware, TECHNIQUES)]
        for hardware in ("cpu", "gpu", "fp8-gpu")
    }
    assert names["gpu"] == ["bf16", "int8", "int4", "int3"] and names["fp8-gpu"] == [
        "bf16",
        "fp8",
        "int8",
        "int4",
        "int3",
    ]
    assert "q4_0" in names["cpu"] and "int4" not in names["cpu"]


def test_a_configuration_alone_has_the_size_of_its_weights(tmp_path: Path) -> None:
    save_tiny(tmp_path / "whole")
    whole = find_model(str(tmp_path / "whole"))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())
    bare = find_model(str(tmp_path / "bare"))
    assert (bare.size.parameters, bare.size.outer, bare.size.shape) == (
        whole.size.parameters,
        whole.size.outer,
        whole.size.shape,
    )
    assert whole.grid == "" and cache_bytes(whole, 64, 1) == 2 * 4 * 32 * 64 * 2


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_advised_on_by_its_configuration(name: str, tmp_path: Path) -> None:
    """Parameters as transformers builds them, a known cache, and a candidate: where GPTQ refuses the family, llama.cpp's own type."""
    model = FAMILIES[name].build()
    content = model.config.to_dict() | {"architectures": [type(model).__name__]}
    (tmp_path / "config.json").write_text(json.dumps(content, default=str))
    found = find_model(str(tmp_path))
    assert found.size.parameters == sum(weight.numel() for weight in model.parameters())
    assert cache_bytes(found, 100, 1)
    known = Situation(
        model=found,
        hardware="cpu",
        memory=1e9,
        compute=Compute(2, "cpu"),
        flops=1e11,
        machine_memory=25e9,
        rows=100,
        items=600,
    )
    facts = find_facts(known, TECHNIQUES)
    advice = apply(RULES, facts, TECHNIQUES, refusals(RULES, found.config or {}, TECHNIQUES))
    steps = {step.name: step for step in merge_steps(advice.do, facts, {})[0]}
    assert steps["q4"].settings.get("scheme") == ("iq4_nl" if name in {"gpt2", "mixtral", "qwen3_moe"} else None)
    assert ("int4" in steps) == facts["packs"]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    with pytest.raises(ConfigError, match="did you mean .*my-model"):
        find_model(str(tmp_path / "my-modle"))
    with pytest.raises(ModelError, match=r"no config\.json"):
        find_model(str(tmp_path / "my-model"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        find_model(str(tmp_path / "notes.txt"))
    (tmp_path / "my-model" / "config.json").write_text(json.dumps({"model_type": "nothing known"}))
    with pytest.raises(ModelError, match="config.json"):
        find_model(str(tmp_path / "my-model"))


@pytest.mark.needs_embedded
def test_the_embedded_model_has_the_bytes_that_its_files_had() -> None:
    """Measured: 269 MB, q4_0 91.7 MB, int4 in groups of 32 116 MB (docs/log, banking77); its file is a q4_1."""
    found = find_model("")
    sizes = {form.precision.name: form.bytes / 1e6 for form in forms(found.size, "cpu", TECHNIQUES)}
    assert sizes["bf16"] == pytest.approx(269, abs=0.5) and sizes["q4_0"] == pytest.approx(91.7, abs=0.1)
    assert found.grid == "q4_1" and found.embedded
