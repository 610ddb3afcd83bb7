"""Hidden size pruning: channels that are really gone, norms and embedding corrected, in a model that transformers and llama.cpp run."""

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
from tasks.prune.hidden import Hidden
from tasks.prune.selection.importance import Criterion
from tasks.prune.selection.layers import Reading
from tasks.prune.selection.losses import text_loss
from tasks.prune.selection.norms import embedding_scale, gain_factors, gain_offset, hidden_norms, size_ratio
from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Rows, Workload
from tasks.shared.model.calibration import batches, calibration_ids, calibration_rows
from tasks.shared.model.loading import load_model
from tasks.shared.model.widths import choose_group_size, model_widths
from tasks.shared.technique import Compute
from tests.families import FAMILIES, silence_channels
from tests.settings_case import Case, Change
from tests.tiny_llama import (
    build_model,
    build_tokenizer,
    empty_run,
    inputs_of,
    one_layer_inputs,
    save_tiny,
    trained_model,
    write_corpus,
)

IDS = torch.arange(3, 40)[None]
ROWS = [IDS[0].tolist(), [40, 41, 42]]
CRITERIA: tuple[Criterion, ...] = ("activation", "contribution", "fluctuation", "wanda", "taylor")


def run(folder: Path, source: Path, **settings: Any) -> tuple[Path, Any]:
    out, step = empty_run(folder, f"step{len(list(folder.iterdir()))}")
    technique = Hidden(**({"calibration_rows": 8, "max_tokens": 64} | settings))
    return out, technique(inputs_of(source, write_corpus(folder / "corpus")), out, step)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_the_model_reloads_with_the_same_channels_everywhere(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = save_tiny(tmp_path / "source")
    out, metrics = run(tmp_path, source, ratio=0.5)
    model, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    assert (metrics["hidden_before"], metrics["hidden"], metrics["columns"], metrics["multiple"]) == (64, 32, 32, 32)
    assert (model.config.hidden_size, model.config.head_dim, model.config.num_attention_heads) == (32, 16, 4)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert metrics["parameters"] == model.num_parameters() < metrics["parameters_before"]
    kept = json.loads((out / "selection.json").read_text("utf-8"))["hidden"]
    whole = load_model(source).bfloat16().float()
    assert len(set(kept)) == 32
    assert torch.equal(model.model.embed_tokens.weight, whole.model.embed_tokens.weight[:, kept])
    for layer, before in zip(model.model.layers, whole.model.layers, strict=True):
        for part, name in (("self_attn", "q_proj"), ("self_attn", "v_proj"), ("mlp", "gate_proj"), ("mlp", "up_proj")):
            read, of = (getattr(getattr(each, part), name).weight for each in (layer, before))
            assert torch.equal(read, of[:, kept]), name
        assert torch.equal(layer.self_attn.o_proj.weight, before.self_attn.o_proj.weight[kept])
        assert torch.equal(layer.mlp.down_proj.weight, before.mlp.down_proj.weight[kept])
    with (out / "importance.csv").open() as stream:
        assert [row["layer"] for row in csv.DictReader(stream)] == ["0", "1", "2", "3", "4"], "the last is the head"


@pytest.mark.parametrize("tied", [True, False])
def test_channels_that_are_zero_go_and_the_model_stays_as_it_was(tied: bool) -> None:
    """An odd share of the channels: what the norms divide by changes by a factor that no weight holds already."""
    model = build_model(tie_word_embeddings=tied, rms_norm_eps=1e-12)
    gone = torch.randperm(64, generator=torch.Generator().manual_seed(1))[:24]
    silence_channels(model, gone)
    for criterion in CRITERIA:
        made = Hidden(criterion=criterion, hidden=40).narrow(model, ROWS, 0, seed=0)
        assert set(made.picks[0].hidden.tolist()).isdisjoint(gone.tolist())
        torch.testing.assert_close(logits(made.model), logits(model), rtol=1e-5, atol=1e-5)
        assert made.figures["gain_min"] == pytest.approx((64 / 40) ** 0.5, rel=1e-6)
        assert made.figures["gain_max"] == pytest.approx((64 / 40) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_that_is_scaled_by_the_hidden_size_is_corrected(tied: bool) -> None:
    """Gemma multiplies it by the root of the hidden size; its norms add 1 to their weights."""
    model = FAMILIES["gemma2"].build(tie_word_embeddings=tied, rms_norm_eps=1e-12)
    silence_channels(model, torch.arange(0, 24))
    made = Hidden(hidden=40).narrow(model, ROWS, 0, seed=0)
    torch.testing.assert_close(logits(made.model), logits(model), rtol=1e-5, atol=1e-5)
    assert made.figures["embedding_scale"] == pytest.approx((64 / 40) ** 0.5, rel=1e-6)
    assert {gain_offset(name, norm) for name, norm in hidden_norms(model).items()} == {1.0}
    with torch.no_grad():
        made.model.model.embed_tokens.weight[:, 3] += 1  # the first layer no longer gets the former channels
    with pytest.raises(TechniqueError, match="the input of its first layer is not the embedding"):
        embedding_scale(made.model, model, made.picks[0].hidden)


def test_the_ratio_of_sizes() -> None:
    values = torch.tensor([[[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    found = size_ratio(values, torch.tensor([0, 2]), epsilon=0.0)
    torch.testing.assert_close(found, torch.tensor([[(4.5 / 6.25) ** 0.5, 1.0]], dtype=torch.float64))
    found = size_ratio(values, torch.tensor([0, 2]), epsilon=2.0)
    torch.testing.assert_close(found[0, 0], torch.tensor((6.5 / 8.25) ** 0.5, dtype=torch.float64))


def test_no_other_factor_brings_a_norm_nearer_to_what_it_gave() -> None:
    """Of kept channels at real tokens, among them one that is a thousand times larger; padding counts for nothing."""
    model = build_model(initializer_range=0.02)
    with torch.no_grad():
        model.model.embed_tokens.weight[3] *= 1e3
    kept = torch.arange(0, 64, 3)
    factors = gain_factors(model, kept, Reading(ROWS, 2, 0))
    seen: list[torch.Tensor] = []
    norm = model.model.layers[2].input_layernorm
    handle = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    for row in ROWS:
        model(torch.tensor([row]))
    handle.remove()
    whole = torch.cat(seen).detach()
    plain = [each * each.square().mean(-1, keepdim=True).rsqrt() for each in (whole, whole[:, kept])]

    def error(factor: float) -> float:
        return float((plain[0][:, kept] - factor * plain[1]).square().sum())

    best = factors["model.layers.2.input_layernorm"]
    assert error(best) < min(error(best * 0.99), error(best * 1.01))
    assert set(factors) == set(hidden_norms(model)) and len(factors) == 2 * 4 + 1


def test_a_trained_model_loses_less_by_importance_than_by_chance(tmp_path: Path) -> None:
    model = trained_model()
    ids = calibration_ids(build_tokenizer(), calibration_rows(write_corpus(tmp_path / "corpus"), 24), 48)
    (held,) = batches(ids[16:], 8, 0)
    losses = {}
    for name in (*CRITERIA, "random"):
        made = Hidden(criterion=name, hidden=48).narrow(model, ids[:16], 0, seed=0)
        losses[name] = float(text_loss(made.model, held).detach())
    assert all(losses[name] < losses["random"] for name in CRITERIA), losses


def test_llama_cpp_answers_as_a_narrower_model(tmp_path: Path) -> None:
    narrow, _ = run(tmp_path, save_tiny(tmp_path / "source"), ratio=0.5)
    out, step = empty_run(tmp_path, "gguf")
    gate = {"prompts": 3, "tokens": 2, "min_top1": 0.95, "max_kl": 0.001}
    metrics = Gguf(scheme="f16", embedding="same", **gate)(inputs_of(narrow), out, step)  # type: ignore[arg-type]
    assert float(metrics["kl_to_source"]) < 0.001


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ratio": 0.999}, "ratio=0.999 leaves none of 64"),
        ({"ratio": 0.25, "multiple": 64}, "removes none"),
        ({"hidden": 66}, "hidden=66 of 64"),
        ({"hidden": 34}, "hidden=34 of 64, which the model's configuration does not take"),
    ],
)
def test_the_plan_refuses_what_leaves_or_removes_nothing_or_does_not_load(settings: dict[str, Any], words: str) -> None:
    refusal = Hidden(**settings).refuses(build_model().config.to_dict())
    assert refusal is not None and words in refusal.reason, refusal


@pytest.mark.parametrize(("kind", "hidden"), [("llama", 432), ("qwen3", 448)])
def test_llama_gets_a_width_that_its_heads_divide(kind: str, hidden: int) -> None:
    """432 channels are asked for; nine heads divide no multiple of 64 near it, which Qwen's configuration does not mind."""
    from transformers import AutoConfig

    sizes = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "num_hidden_layers": 2}  # fmt: skip
    planned = Hidden(ratio=0.25).changed_config({**sizes, "head_dim": 64, "model_type": kind})
    assert (planned["hidden_size"], planned["head_dim"]) == (hidden, 64)
    AutoConfig.for_model(**planned)


def test_later_steps_see_the_width() -> None:
    widths = model_widths(Hidden(hidden=40).changed_config(build_model().config.to_dict()))
    assert widths == {"hidden_size": 40, "heads x head_dim": 64, "intermediate_size": 128}
    with pytest.raises(TechniqueError, match=r"32 does not divide 1 input sizes: hidden_size \(in=40\)"):
        choose_group_size(widths, 32)


def test_norms_that_subtract_a_mean_are_refused() -> None:
    """By the family's name in the plan, and by what they compute in a family that is not known."""
    refusal = Hidden().refuses(FAMILIES["gpt_neox"].build().config.to_dict())
    assert refusal is not None and "subtract the mean" in refusal.reason
    model = build_model()
    model.model.layers[1].input_layernorm = torch.nn.LayerNorm(64)
    with pytest.raises(TechniqueError, match=r"layers\.1\.input_layernorm: LayerNorm is not an RMS norm"):
        Hidden().narrow(model, ROWS, 0, seed=0)


@pytest.mark.parametrize("settings", [{"ratio": 0.5}, {"hidden": 40}])
def test_the_forecast_is_of_the_model_that_is_made(tmp_path: Path, settings: dict[str, Any]) -> None:
    source = save_tiny(tmp_path / "source")
    _, metrics = run(tmp_path, source, criterion="magnitude", **settings)
    work = Workload({"model": (size_of(source),)}, Rows(), Compute(), 1e11)
    technique = Hidden(criterion="magnitude", **settings)
    made = technique.forecast(work).size
    assert made is not None and made.parameters == pytest.approx(metrics["parameters"], rel=0.02)
    assert made.shape.width == metrics["hidden"]
    costs = {name: Hidden(criterion=name, calibration_rows=9999).forecast(work).seconds for name in ("magnitude", "activation", "taylor")}  # fmt: skip
    assert 15 < costs["magnitude"] < costs["activation"] < costs["taylor"], "norms are measured in any case"


CHANGES = {
    "ratio": Change(0.25),
    "multiple": Change(16, {"ratio": 0.6}),
    "criterion": Change("random"),
    "hidden": Change(48),
    "calibration_rows": Change(1),
    "max_tokens": Change(8),
    "batch_size": Change(1, {"criterion": "taylor"}),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    yield Case(
        folder, one_layer_inputs(folder), {"ratio": 0.5, "calibration_rows": 8, "max_tokens": 64, "batch_size": 8}
    )
