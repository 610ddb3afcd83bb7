"""FLAP: units that hardly change go, and what they gave on average stays as a bias."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.planning.sizes import size_of
from tasks.export.gguf import Gguf
from tasks.prune.depth import Depth
from tasks.prune.flap import Flap
from tasks.prune.selection.activations import BlockAxis, last_projections
from tasks.prune.selection.compensation import removed_mean
from tasks.prune.selection.narrowing import Narrowed
from tasks.shared.errors import ModelError
from tasks.shared.forecast import Rows, Workload
from tasks.shared.model.calibration import calibration_ids, calibration_rows
from tasks.shared.model.families import ATTENTION_BIAS, FEED_FORWARD_BIAS
from tasks.shared.model.layout import decoder_layers
from tasks.shared.model.loading import load_model
from tasks.shared.technique import Compute
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

IDS = torch.arange(3, 40)[None]
ROWS = [list(range(3, 40)), list(range(60, 90))]
UNITS = ("neurons", "groups", "queries", "both")
ZEROS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


def run(folder: Path, source: Path, **settings: Any) -> tuple[Path, Any]:
    out, step = empty_run(folder, f"step{len(list(folder.iterdir()))}")
    technique = Flap(**({"calibration_rows": 8, "max_tokens": 64, "ratio": 0.5} | settings))
    return out, technique(inputs_of(source, write_corpus(folder / "corpus")), out, step)


def test_what_is_removed_leaves_its_mean_behind() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, values = torch.randn(5, 6, generator=generator), 1 + torch.randn(40, 6, generator=generator)
    kept = torch.tensor([0, 3, 4])
    bias = removed_mean(weight, values.mean(0).double(), kept)
    left = values[:, kept] @ weight[:, kept].T + bias.float()
    torch.testing.assert_close(left.mean(0), (values @ weight.T).mean(0))


def inputs_of_projections(model: Any, axis: BlockAxis, ids: torch.Tensor) -> list[torch.Tensor]:
    """What enters the last projection of each layer's block."""
    found: list[torch.Tensor] = []
    handles = [
        last.register_forward_pre_hook(lambda _, args: found.append(args[0])) for last in last_projections(model, axis)
    ]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return found


def output_errors(model: Any, made: Narrowed, axis: BlockAxis) -> torch.Tensor:
    """Mean squared error of each block's output on the calibration rows, for the same inputs."""
    found = []
    for row in ROWS:
        inputs = inputs_of_projections(model, axis, torch.tensor([row]))
        lasts = zip(last_projections(model, axis), last_projections(made.model, axis), strict=True)
        with torch.no_grad():
            found.append(
                torch.stack([
                    (before(values) - after(values[..., pick.along()[axis]])).square().sum()
                    for (before, after), values, pick in zip(lasts, inputs, made.picks, strict=True)
                ])
            )  # fmt: skip
    return torch.stack(found).sum(0)


@pytest.mark.parametrize("units", UNITS)
def test_the_bias_makes_the_error_of_every_block_smaller(units: Any) -> None:
    """By what the mean of the removed units adds to the output, for every token: the same units go with and without."""
    model = build_model()
    technique = Flap(ratio=0.5, units=units)
    made, plain = (each.narrow(model, ROWS, 0, seed=0) for each in (technique, replace(technique, compensate=False)))
    tokens = sum(map(len, ROWS))
    for axis in technique.axes:
        assert all(
            torch.equal(one.along()[axis], other.along()[axis])
            for one, other in zip(made.picks, plain.picks, strict=True)
        )
        gain = output_errors(model, plain, axis) - output_errors(model, made, axis)
        biases = torch.stack([last.bias.square().sum() for last in last_projections(made.model, axis)])  # type: ignore[union-attr, operator]
        torch.testing.assert_close(gain, tokens * biases, rtol=1e-3, atol=1e-6)
        assert bool((gain > 0).all())


def with_constants(model: Any) -> Any:
    """A model in which the first 64 neurons and the first group of heads of each layer give the same for every token."""
    with torch.no_grad():
        for layer in decoder_layers(model):
            for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
                projection.weight[:64] = 0
                projection.bias[:64] = 3.0
            layer.self_attn.v_proj.weight[:16] = 0
            layer.self_attn.v_proj.bias[:16] = 3.0
    return model


def test_units_that_are_constant_go_and_the_model_stays_as_it_was() -> None:
    """They give the most of all units, and change the least; a bias that a projection has is added to."""
    model = with_constants(FAMILIES["llama"].build(attention_bias=True, mlp_bias=True))
    made = Flap(ratio=0.5, units="both").narrow(model, ROWS, 0, seed=0)
    for pick in made.picks:
        assert pick.neurons.tolist() == list(range(64, 128)) and pick.kv_heads.tolist() == [1]
    for layers in made.scores["neurons"], made.scores["heads"]:
        assert all(float(found[: len(found) // 2].max()) < 1e-9 * float(found.max()) for found in layers)
    with torch.no_grad():
        torch.testing.assert_close(made.model(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)
        worse = Flap(ratio=0.5, units="both", compensate=False).narrow(model, ROWS, 0, seed=0).model(IDS).logits
    assert not torch.allclose(worse, model(IDS).logits, atol=0.1)


@pytest.mark.parametrize("units", UNITS)
def test_the_saved_model_is_the_narrowed_one_bit_by_bit(tmp_path: Path, units: Any) -> None:
    from transformers import AutoModelForCausalLM

    source = save_tiny(tmp_path / "source")
    out, metrics = run(tmp_path, source, units=units)
    model, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    technique = Flap(ratio=0.5, units=units)
    ids = calibration_ids(build_tokenizer(), calibration_rows(tmp_path / "corpus", 8), 64)
    made = technique.narrow(load_model(source), ids, 0, seed=0).model
    for parameter in made.parameters():
        parameter.data = parameter.data.bfloat16().float()
    assert metrics["parameters"] == model.num_parameters() == made.num_parameters()
    saved, wanted = model.state_dict(), made.state_dict()
    assert saved.keys() == wanted.keys() and all(torch.equal(saved[name], wanted[name]) for name in saved)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, made.eval()(IDS).logits)
    assert (model.config.attention_bias, model.config.mlp_bias) == (units != "neurons", units in ("neurons", "both"))
    biases = {name: weight for name, weight in saved.items() if name.endswith("bias")}
    assert all(bool(weight.any()) == (name.split(".")[-2] not in ZEROS) for name, weight in biases.items())
    assert any(name.endswith("down_proj.bias") for name in biases) == (units in ("neurons", "both"))
    assert any(name.endswith("o_proj.bias") for name in biases) == (units != "neurons")


def test_later_steps_carry_the_biases_and_llama_cpp_reads_them(tmp_path: Path) -> None:
    slim, _ = run(tmp_path, save_tiny(tmp_path / "source"), units="both")
    shallow, step = empty_run(tmp_path, "depth")
    Depth(layers=(1,))(inputs_of(slim, tmp_path / "corpus"), shallow, step)
    before, after = load_model(slim), load_model(shallow)
    for axis in Flap(units="both").axes:
        kept = [last for layer, last in enumerate(last_projections(before, axis)) if layer != 1]
        for last, wanted in zip(last_projections(after, axis), kept, strict=True):
            assert torch.equal(last.get_parameter("bias"), wanted.get_parameter("bias"))
    again, _ = run(tmp_path, shallow, ratio=0.5)
    assert load_model(again).config.intermediate_size == 32
    file, step = empty_run(tmp_path, "gguf")
    gate = Gguf(scheme="f16", embedding="same", prompts=3, tokens=2, min_top1=0.95, max_kl=0.001)
    assert float(gate(inputs_of(again), file, step)["kl_to_source"]) < 0.001
    with pytest.raises(ModelError, match=r"tensors of the files not in the model .*bias"):
        load_model(file / "model.gguf")


@pytest.mark.parametrize(
    ("name", "units", "words", "fix"),
    [
        ("mistral", "neurons", "last projection of its feed-forward block has no bias", "compensate=false"),
        ("qwen2", "groups", "last projection of its attention has no bias", "compensate=false"),
        ("qwen2", "both", "attention and feed-forward block has no bias", "compensate=false"),
        ("qwen3", "neurons", "last projection of its feed-forward block has no bias", "units=groups or compensate=false"),
        ("qwen3", "both", "last projection of its feed-forward block has no bias", "units=groups or compensate=false"),
        ("olmo2", "neurons", "last projection of its feed-forward block has no bias", "compensate=false"),
        ("olmo2", "groups", "norms of queries and keys", "prune/width"),
        ("gpt_neox", "groups", "share one projection", "prune/width"),
        ("mixtral", "neurons", "each expert", "prune/heads"),
        ("gpt2", "neurons", "Conv1D", "prune/depth"),
    ],
)  # fmt: skip
def test_families_without_a_place_for_the_bias_are_refused(name: str, units: Any, words: str, fix: str) -> None:
    config = FAMILIES[name].build().config.to_dict()
    refusal = Flap(units=units, ratio=0.5).refuses(config)
    assert refusal is not None and words in refusal.reason and fix in refusal.instead
    if "compensate" in fix:
        assert Flap(units=units, ratio=0.5, compensate=False).refuses(config) is None


def test_the_plan_sees_the_biases_and_the_sizes() -> None:
    config = FAMILIES["qwen3"].build().config.to_dict()
    technique = Flap(units="groups", ratio=0.5)
    planned = technique.changed_config(config)
    assert planned["attention_bias"] and planned["num_key_value_heads"] == 1 and "mlp_bias" not in planned
    refusal = Gguf().refuses(planned)
    assert refusal is not None and "attention_bias" in refusal.reason
    assert Gguf().refuses(replace(technique, compensate=False).changed_config(config)) is None
    both = Flap(units="both", ratio=0.5).changed_config(build_model().config.to_dict())
    assert both["attention_bias"] and both["mlp_bias"] and both["intermediate_size"] == 64
    assert Gguf().refuses(both) is None


@pytest.mark.parametrize("kind", sorted(ATTENTION_BIAS | FEED_FORWARD_BIAS | FAMILIES.keys() - {"gpt2"}))
def test_families_whose_last_projections_get_a_bias_are_known(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {"attention_bias": True, "mlp_bias": True}
    known = {name: value for name, value in settings.items() if hasattr(AutoConfig.for_model(kind), name)}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, num_hidden_layers=2, **known))
    assert (last_projections(model, "heads")[0].bias is not None) == (kind in ATTENTION_BIAS or kind == "gpt_neox")
    if kind not in ("mixtral", "qwen3_moe", "granitemoe", "phimoe"):
        biased = last_projections(model, "neurons")[0].bias is not None
        assert biased == (kind in FEED_FORWARD_BIAS or kind == "gpt_neox")


@pytest.mark.parametrize("units", UNITS)
def test_the_forecast_is_of_the_model_that_is_made(tmp_path: Path, units: Any) -> None:
    source = save_tiny(tmp_path / "source")
    _, metrics = run(tmp_path, source, units=units)
    technique = Flap(units=units, ratio=0.5)
    work = Workload({"model": (size_of(source),)}, Rows(), Compute(), 1e11)
    made = technique.forecast(work).size
    assert made is not None and made.parameters == pytest.approx(metrics["parameters"], rel=0.02)
    gradients = replace(technique, criterion="taylor").forecast(work).seconds
    assert gradients > technique.forecast(work).seconds > replace(technique, criterion="random", compensate=False).forecast(work).seconds  # fmt: skip


def test_other_criteria_are_compensated_as_well(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    for criterion in ("taylor", "random"):
        out, _ = run(tmp_path, source, criterion=criterion, units="both", compensate=True)
        model = load_model(out)
        assert all(
            bool(last.get_parameter("bias").any())
            for axis in ("heads", "neurons")
            for last in last_projections(model, axis)
        )  # type: ignore[arg-type]
    record = json.loads((out / "selection.json").read_text("utf-8"))
    assert {(len(layer["heads"]), len(layer["neurons"])) for layer in record["layers"]} == {(2, 64)}


CHANGES = {
    "ratio": Change(0.25),
    "multiple": Change(64, {"ratio": 0.3}),
    "criterion": Change("random"),
    "units": Change("both"),
    "compensate": Change(False),
    "calibration_rows": Change(1),
    "max_tokens": Change(8),
    "batch_size": Change(1, {"criterion": "taylor"}),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    yield Case(
        folder, one_layer_inputs(folder), {"ratio": 0.5, "calibration_rows": 8, "max_tokens": 64, "batch_size": 8}
    )
