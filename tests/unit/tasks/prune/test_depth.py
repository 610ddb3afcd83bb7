"""Depth pruning: what block influence measures, and that layers are really gone."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.planning.sizes import size_of
from tasks.prune.depth import Depth, check_layers, drop_layers
from tasks.prune.selection.layers import (
    Reading,
    angular_distance,
    block_influence,
    choose_layers,
    closest_run,
    free_layers,
    greedy_layers,
    lowest_layers,
    measure_angles,
    measure_influence,
)
from tasks.prune.selection.losses import text_loss
from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Rows, Workload
from tasks.shared.model.calibration import batches
from tasks.shared.model.loading import load_model
from tasks.shared.technique import Compute
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, build_tokenizer, empty_run, inputs_of, save_tiny, write_corpus


def make_identity(layer: torch.nn.Module) -> None:
    """A decoder layer whose two residual branches add nothing."""
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()


def test_influence_is_zero_for_the_same_direction_and_two_for_the_opposite() -> None:
    state, mask = torch.randn(2, 3, 8), torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert block_influence(state, 3.0 * state, mask).item() == pytest.approx(0.0, abs=1e-6)
    assert block_influence(state, -state, mask).item() == pytest.approx(2.0 * 4)


def test_padding_does_not_count() -> None:
    model = build_model()
    ids = [[5, 6, 7, 8, 9], [10, 11]]
    together = measure_influence(model, ids, batch_size=2, pad_id=0)
    apart = measure_influence(model, ids, batch_size=1, pad_id=0)
    assert together == pytest.approx(apart, rel=1e-4)


def test_identity_layer_has_no_influence_and_goes_first() -> None:
    model = build_model()
    make_identity(model.model.layers[2])
    influence = measure_influence(model, [list(range(3, 40))], batch_size=1, pad_id=0)
    assert influence[2] == pytest.approx(0.0, abs=1e-6)
    assert min(value for index, value in enumerate(influence) if index != 2) > 1e-4
    assert lowest_layers(influence, *free_layers(4, 0.25)) == [2]


def test_the_angle_is_0_for_the_same_direction_half_for_a_right_one_and_1_for_the_opposite() -> None:
    state, mask = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]]), torch.tensor([[1, 1]])
    turned = state.flip(-1) * torch.tensor([-1.0, 1.0])
    angles = [angular_distance(state, other, mask).item() for other in (2.0 * state, turned, -state)]
    assert angles == pytest.approx([0.0, 0.5 * 2, 1.0 * 2], abs=1e-6)


def test_a_run_s_angle_is_that_between_its_input_and_its_output() -> None:
    """From states taken by hand; a run whose layers undo each other is closest although each of them turns much."""
    model, ids = build_model(), [list(range(3, 40))]
    batch = next(batches(ids, 1, 0))
    with torch.inference_mode():
        states = model(**batch, output_hidden_states=True).hidden_states  # the last one is after the norm
    by_hand = [
        float(angular_distance(states[start], states[start + 2], batch["attention_mask"])) / 37 for start in (0, 1)
    ]
    found = measure_angles(model, ids, 1, 0, count=2)
    assert len(found) == 3 and found[:2] == pytest.approx(by_hand)
    assert closest_run([0.3, 0.1, 0.1, 0.0], range(1, 4), 2) == [2, 3], "of equal ones the later"
    assert closest_run([0.3, 0.2, 0.1], range(0, 3), 2) == [1, 2], "a run ends within the free layers"


def loss_without(layers: list[int]) -> float:
    """The model's own loss on a text, with layers really removed."""
    model, ids = build_model(), torch.arange(3, 40)[None]
    drop_layers(model, layers)
    with torch.inference_mode():
        return float(model(ids, labels=ids).loss)


def test_the_greedy_choice_is_that_of_models_whose_layers_are_really_removed() -> None:
    dropped, losses = greedy_layers(build_model(), [list(range(3, 40))], 1, 0, free=range(1, 4), count=2)
    by_hand = {layer: loss_without([layer]) for layer in (1, 2, 3)}
    assert losses == pytest.approx(by_hand)
    first = min(by_hand, key=by_hand.__getitem__)
    second = min(by_hand.keys() - {first}, key=lambda layer: loss_without([first, layer]))
    assert dropped == sorted([first, second])


def test_the_loss_of_a_text_is_the_model_s_own() -> None:
    model, ids = build_model(), torch.arange(3, 40)[None]
    with torch.inference_mode():
        own = model(ids, labels=ids).loss * 36
        found = text_loss(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    torch.testing.assert_close(found, own)


def test_controls_take_layers_by_their_place() -> None:
    reading = Reading([[3, 4, 5]], 1, 0)
    chosen = {
        name: choose_layers(name, build_model(), reading, [0.0] * 8, range(1, 7), 2, seed=4)[0]  # type: ignore[arg-type]
        for name in ("first", "last", "random")
    }
    assert (chosen["first"], chosen["last"]) == ([1, 2], [5, 6])
    assert len(set(chosen["random"])) == 2 and set(chosen["random"]) <= set(range(1, 7))


@pytest.mark.parametrize(("criterion", "kept"), [("first", [0, 3]), ("last", [0, 3]), ("influence", None)])
def test_the_plan_knows_the_layers_that_are_chosen_by_place(criterion: str, kept: list[int] | None) -> None:
    config = {"num_hidden_layers": 4, "layer_types": ["a", "b", "b", "c"], "model_type": "qwen2"}
    found = Depth(criterion=criterion, ratio=0.5).changed_config(config)  # type: ignore[arg-type]
    assert found["layer_types"] == ([config["layer_types"][index] for index in kept] if kept else ["unknown"] * 2)  # type: ignore[index]


def test_states_that_are_no_numbers_are_refused() -> None:
    model = build_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(TechniqueError, match="layer 1: its states"):
        measure_influence(model, [[3, 4, 5]], 1, 0)


def test_the_plan_refuses_what_leaves_no_layer() -> None:
    refusal = Depth(ratio=0.9).refuses({"num_hidden_layers": 4, "model_type": "llama"})
    assert refusal is not None and "would drop all 4" in refusal.reason and "ratio=0.75" in refusal.instead
    assert Depth(layers=(9,)).refuses({"num_hidden_layers": 4}) is not None
    assert Depth().refuses({"num_hidden_layers": 4}) is Depth().refuses({}) is None


def test_logits_equal_those_of_layers_skipped_by_hand() -> None:
    whole, short = build_model(), build_model()
    ids = torch.arange(3, 30)[None]
    drop_layers(short, [1, 2])
    handles = [
        whole.model.layers[index].register_forward_hook(
            lambda _, args, kwargs, out: args[0] if args else kwargs["hidden_states"], with_kwargs=True
        )
        for index in (1, 2)
    ]
    with torch.inference_mode():
        torch.testing.assert_close(short(ids).logits, whole(ids, use_cache=False).logits)
    for handle in handles:
        handle.remove()


def test_cache_positions_follow_the_new_order() -> None:
    model = build_model()
    drop_layers(model, [0, 2])
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]
    assert model.config.num_hidden_layers == 2
    ids = torch.arange(3, 20)[None]
    settings = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cached, plain = (model.generate(ids, use_cache=use_cache, **settings) for use_cache in (True, False))
    assert torch.equal(cached, plain)
    with torch.inference_mode():
        assert len(model(ids, use_cache=True).past_key_values) == 2


def test_per_layer_configuration_is_shortened() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=2,
    )
    model = Qwen2ForCausalLM(config).eval()
    before = list(model.config.layer_types)
    drop_layers(model, [0])
    assert model.config.layer_types == before[1:]
    with torch.inference_mode():
        assert model(torch.arange(3, 30)[None]).logits.shape == (1, 27, 128)


def test_saved_model_loads_without_missing_keys_and_answers_the_same(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source, corpus = save_tiny(tmp_path / "source"), write_corpus(tmp_path / "corpus")
    out, run = empty_run(tmp_path)
    metrics = Depth(ratio=0.5, calibration_rows=8, batch_size=4)(inputs_of(source, corpus), out, run)
    model, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (metrics["layers_before"], metrics["layers"]) == (4, 2)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    by_hand = load_model(source)
    drop_layers(by_hand, [int(index) for index in str(metrics["dropped"]).split()])
    for parameter in by_hand.parameters():  # not .to(bfloat16), which would round the rotary frequencies too
        parameter.data = parameter.data.to(torch.bfloat16).float()
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        assert torch.equal(load_model(out)(ids).logits, by_hand(ids).logits)
    with (out / "influence.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["layer"] for row in rows if row["dropped"] == "1"] == str(metrics["dropped"]).split()


@pytest.mark.parametrize("settings", [{"ratio": 0.5}, {"ratio": 0.0}, {"layers": (2,), "ratio": 0.75}])
def test_the_forecast_counts_the_layers_that_are_dropped(tmp_path: Path, settings: dict[str, Any]) -> None:
    source, technique = save_tiny(tmp_path / "source"), Depth(**settings)
    out, run = empty_run(tmp_path)
    metrics = technique(inputs_of(source, write_corpus(tmp_path / "corpus")), out, run)
    made = technique.forecast(Workload({"model": (size_of(source),)}, Rows(), Compute(), 1e11)).size
    assert made is not None and made.shape.layers == metrics["layers"]
    assert made.parameters == pytest.approx(float(metrics["parameters"]), rel=0.01)


def test_ratio_zero_keeps_every_layer() -> None:
    assert lowest_layers([0.1, 0.2, 0.3], *free_layers(3, 0.0)) == []


def test_ratio_that_drops_everything_is_refused() -> None:
    with pytest.raises(TechniqueError, match="all 2 layers"):
        free_layers(2, 0.9)


def test_protected_ends_that_leave_too_few_are_refused() -> None:
    with pytest.raises(TechniqueError, match="leave 2"):
        free_layers(4, 0.75, 1, 1)


@pytest.mark.parametrize(("layers", "words"), [((4,), "no layer 4"), ((1, 1), "twice"), ((0, 1, 2, 3), "all 4")])
def test_wrong_explicit_layers_are_refused(layers: tuple[int, ...], words: str) -> None:
    with pytest.raises(TechniqueError, match=words):
        check_layers(layers, 4)


def test_another_layout_is_refused_with_what_was_looked_for() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=64))
    with pytest.raises(
        TechniqueError, match=r"its parts: transformer, lm_head\n  wanted: model\.layers with self_attn"
    ):
        drop_layers(model, [0])


def test_tokenizer_of_the_tests_is_byte_level() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.decode(tokenizer("It's 45.50, né?")["input_ids"]) == "It's 45.50, né?"


CHANGES = {
    "ratio": Change(0.5),
    "criterion": Change("last", {"layers": [], "protect_first": 0, "ratio": 0.5}),
    "layers": Change([2, 3]),
    "protect_first": Change(0),
    "protect_last": Change(0),
    "calibration_rows": Change(6),
    "max_tokens": Change(16),
    "batch_size": Change(1),  # padding moves the last bits of every sum, and with them perhaps a layer
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    """The first and the last layer have no influence: each goes as soon as it is not protected."""
    model = build_model()
    make_identity(model.model.layers[0]), make_identity(model.model.layers[3])
    inputs = inputs_of(save_tiny(folder / "model", model), write_corpus(folder / "corpus"))
    yield Case(folder, inputs, {"ratio": 0.25, "calibration_rows": 8, "max_tokens": 64, "batch_size": 8})
