"""Head pruning: query heads and groups that are really gone, in a model that transformers and llama.cpp run."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.planning.sizes import size_of
from tasks.export.gguf import Gguf
from tasks.prune.heads import Heads
from tasks.prune.width import Width
from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Rows, Workload
from tasks.shared.model.loading import load_model
from tasks.shared.technique import Compute
from tests.families import FAMILIES
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, empty_run, inputs_of, save_tiny, write_corpus

IDS = torch.arange(3, 40)[None]


def run(folder: Path, source: Path, **settings: Any) -> tuple[Path, Any]:
    out, step = empty_run(folder, f"step{len(list(folder.iterdir()))}")
    technique = Heads(**({"calibration_rows": 8, "max_tokens": 64} | settings))
    return out, technique(inputs_of(source, write_corpus(folder / "corpus")), out, step)


def silenced(heads: list[list[int]], **changes: Any) -> Any:
    """A tiny model in which some query heads of each layer give nothing, in values that bfloat16 holds."""
    model = build_model(**changes)
    with torch.no_grad():
        for layer, silent in zip(model.model.layers, heads, strict=True):
            for head in silent:
                layer.self_attn.o_proj.weight[:, head * 16 : (head + 1) * 16] = 0
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().float()
    return model


@pytest.mark.parametrize(
    ("unit", "silent", "heads", "kv_heads"),
    [
        ("groups", [[0, 1], [2, 3], [0, 1], [2, 3]], 2, 1),
        ("queries", [[0, 2], [1, 3], [0, 3], [1, 2]], 2, 2),
    ],
)
def test_heads_that_add_nothing_go_and_the_model_stays_as_it_was(
    tmp_path: Path, unit: str, silent: list[list[int]], heads: int, kv_heads: int
) -> None:
    """Others in each layer: query heads keep the key-value head that they were trained with."""
    from transformers import AutoModelForCausalLM

    whole = silenced(silent)
    out, metrics = run(tmp_path, save_tiny(tmp_path / "source", whole), unit=unit, ratio=0.5, criterion="contribution")
    model, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    assert (metrics["heads"], metrics["kv_heads"], model.config.head_dim) == (heads, kv_heads, 16)
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (heads, kv_heads)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, whole(IDS).logits, rtol=1e-5, atol=1e-5)
        cache = model(IDS, use_cache=True).past_key_values
    assert cache.layers[0].keys.shape[1] == kv_heads
    kept = json.loads((out / "selection.json").read_text("utf-8"))["layers"]
    assert [layer["heads"] for layer in kept] == [sorted(set(range(4)) - set(gone)) for gone in silent]
    with (out / "importance.csv").open() as stream:
        assert {row["kept"] for row in csv.DictReader(stream)} == {"1.000000"}


def test_llama_cpp_answers_as_a_model_with_fewer_heads_and_neurons(tmp_path: Path) -> None:
    heads, _ = run(tmp_path, save_tiny(tmp_path / "source"), unit="queries", ratio=0.5)
    out, step = empty_run(tmp_path, "width")
    Width(ratio=0.25, calibration_rows=8)(inputs_of(heads, tmp_path / "corpus"), out, step)
    file, step = empty_run(tmp_path, "gguf")
    metrics = Gguf(scheme="f16", embedding="same", prompts=3, tokens=2, min_top1=0.95, max_kl=0.001)(
        inputs_of(out), file, step
    )
    assert float(metrics["kl_to_source"]) < 0.001


SIZES = {
    "hidden_size": 960, "num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64, "intermediate_size": 2560, "num_hidden_layers": 2,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "heads"), [("llama", 12), ("qwen3", 9)])
def test_llama_gets_a_number_of_heads_that_divides_its_width(kind: str, heads: int) -> None:
    """9 heads are asked for; 960 / 9 is no whole number, which Llama's configuration refuses and Qwen's does not."""
    from transformers import AutoConfig

    planned = Heads(ratio=0.4).changed_config({**SIZES, "model_type": kind})
    assert planned["num_attention_heads"] == heads and planned["num_key_value_heads"] == heads // 3
    AutoConfig.for_model(**planned)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_whose_configuration_wants_whole_heads_are_known(name: str) -> None:
    from huggingface_hub.errors import StrictDataclassError

    from tasks.shared.model.families import WHOLE_HEADS

    config = FAMILIES[name].build().config
    if name == "gpt2":
        return  # refused
    config.num_attention_heads = 3
    refused = False
    try:
        config.validate()
    except StrictDataclassError:
        refused = True
    assert refused == (name in WHOLE_HEADS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ratio": 0.9}, "ratio=0.9 leaves none of 2"),
        ({"unit": "queries", "ratio": 0.1}, "removes none"),
        ({"kept": 3}, "kept=3 of 2"),
    ],
)
def test_the_plan_refuses_what_leaves_or_removes_nothing(settings: dict[str, Any], words: str) -> None:
    refusal = Heads(**settings).refuses(build_model().config.to_dict())
    assert refusal is not None and words in refusal.reason


def test_a_number_of_heads_that_llama_does_not_take_is_refused() -> None:
    refusal = Heads(kept=3).refuses({**SIZES, "model_type": "llama"})
    assert refusal is not None and "3 of 5, which the model's configuration does not take" in refusal.reason
    assert Heads(kept=3).refuses({**SIZES, "model_type": "mistral"}) is None


def test_other_sizes_than_the_configuration_takes_are_refused_before_they_are_written() -> None:
    from dataclasses import replace

    from tasks.prune.selection.copying import student_config
    from tasks.prune.selection.shape import shape_of

    config = build_model().config
    with pytest.raises(TechniqueError, match=r"would not load: .*not a multiple of the number of attention heads"):
        student_config(config, replace(shape_of(config), heads=3, kv_heads=3), range(4))


@pytest.mark.parametrize("settings", [{"ratio": 0.5}, {"unit": "queries", "ratio": 0.5}])
def test_the_forecast_is_of_the_model_that_is_made(tmp_path: Path, settings: dict[str, Any]) -> None:
    source = save_tiny(tmp_path / "source")
    _, metrics = run(tmp_path, source, criterion="magnitude", **settings)
    made = Heads(**settings).forecast(Workload({"model": (size_of(source),)}, Rows(), Compute(), 1e11)).size
    assert made is not None and made.parameters == pytest.approx(metrics["parameters"], rel=0.02)
    assert load_model(tmp_path / "source").config.num_attention_heads == metrics["heads_before"] == 4


CHANGES = {
    "ratio": Change(0.75),
    "multiple": Change(64, {"unit": "queries", "ratio": 0.6}),
    "criterion": Change("magnitude"),
    "unit": Change("queries"),
    "kept": Change(1),
    "calibration_rows": Change(1, {"criterion": "taylor"}),
    "max_tokens": Change(8, {"criterion": "taylor"}),
    "batch_size": Change(1, {"criterion": "taylor"}),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    """Four groups of three heads each, of a size that rounding changes."""
    model = build_model(num_attention_heads=12, num_key_value_heads=4, head_dim=8, hidden_size=48, num_hidden_layers=1)
    inputs = inputs_of(save_tiny(folder / "model", model), write_corpus(folder / "corpus"))
    yield Case(folder, inputs, {"ratio": 0.5, "calibration_rows": 8, "max_tokens": 64, "batch_size": 8})
