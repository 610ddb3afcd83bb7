"""Width pruning: neurons that are really gone, the least important ones, in a model that plain transformers loads."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.planning.sizes import size_of
from tasks.prune.selection.activations import last_projections
from tasks.prune.width import Width
from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Rows, Workload
from tasks.shared.model.calibration import calibration_ids, calibration_rows
from tasks.shared.model.loading import load_model
from tasks.shared.technique import Compute
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


def run(folder: Path, source: Path, **settings: Any) -> tuple[Path, Any]:
    out, step = empty_run(folder, f"step{len(list(folder.iterdir()))}")
    technique = Width(**({"calibration_rows": 8, "max_tokens": 64} | settings))
    return out, technique(inputs_of(source, write_corpus(folder / "corpus")), out, step)


def test_the_model_reloads_with_the_neurons_that_were_chosen(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = save_tiny(tmp_path / "source")
    out, metrics = run(tmp_path, source, ratio=0.25)
    model, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    assert (metrics["neurons_before"], metrics["neurons"], metrics["multiple"]) == (128, 96, 32)
    assert model.config.intermediate_size == 96 and metrics["parameters"] == model.num_parameters()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    kept = json.loads((out / "selection.json").read_text("utf-8"))["layers"]
    whole = load_model(source).bfloat16()
    for layer, before, chosen in zip(model.model.layers, whole.model.layers, kept, strict=True):
        assert len(set(chosen["neurons"])) == 96 and chosen["heads"] == [0, 1, 2, 3]
        for name in ("gate_proj", "up_proj"):
            assert torch.equal(
                getattr(layer.mlp, name).weight, getattr(before.mlp, name).weight[chosen["neurons"]].float()
            )
        assert torch.equal(layer.mlp.down_proj.weight, before.mlp.down_proj.weight[:, chosen["neurons"]].float())


def test_neurons_that_add_nothing_go_and_the_model_stays_as_it_was(tmp_path: Path) -> None:
    """Different ones in each layer, both by what they give (activation) and by what becomes of it (contribution)."""
    model = build_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.model.layers:
            silent = torch.randperm(128, generator=generator)[:64]
            layer.mlp.down_proj.weight[:, silent[:32]] = 0
            layer.mlp.up_proj.weight[silent] = 0
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().float()
        wanted = model(IDS).logits
    source = save_tiny(tmp_path / "source", model)
    for criterion in ("activation", "contribution", "fluctuation", "wanda", "taylor"):
        out, metrics = run(tmp_path, source, ratio=0.5, criterion=criterion)
        with torch.no_grad():
            torch.testing.assert_close(load_model(out)(IDS).logits, wanted, rtol=1e-5, atol=1e-5)
        assert metrics["importance_kept_min"] == pytest.approx(1.0)


def output_error(model: Any, criterion: str, ids: list[list[int]], held: torch.Tensor) -> float:
    """Squared error of all feed-forward blocks' outputs on a held-out text, each block without half of its neurons."""
    technique = Width(criterion=criterion, ratio=0.5)  # type: ignore[arg-type]
    scores, found, inputs = technique.narrow(model, ids, 0, seed=0).scores["neurons"], [], []
    handles = [
        last.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        for last in last_projections(model, "neurons")
    ]
    with torch.no_grad():
        model(held)
        for last, values, score in zip(last_projections(model, "neurons"), inputs, scores, strict=True):
            gone = score.argsort()[:64]
            found.append(float((values[..., gone] @ last.weight[:, gone].T).square().mean()))
    for handle in handles:
        handle.remove()
    return sum(found)


def test_activations_choose_better_than_magnitude_and_chance_in_a_trained_model(tmp_path: Path) -> None:
    model = trained_model()
    rows = calibration_rows(write_corpus(tmp_path / "corpus"), 24)
    ids = calibration_ids(build_tokenizer(), rows, 48)
    held = torch.tensor([row[:24] for row in ids[16:]])
    errors = {
        name: output_error(model, name, ids[:16], held)
        for name in ("activation", "contribution", "fluctuation", "wanda", "magnitude", "random")
    }
    assert errors["contribution"] < errors["magnitude"] and errors["activation"] < errors["magnitude"], errors
    assert max(errors["wanda"], errors["fluctuation"]) < errors["magnitude"] < errors["random"], errors


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ratio": 0.999}, r"ratio=0\.999 leaves none of 128"),
        ({"neurons": 129}, "neurons=129 of 128"),
        ({"ratio": 0.1, "multiple": 128}, "removes none"),
    ],
)
def test_the_plan_refuses_what_leaves_or_removes_nothing(settings: dict[str, Any], words: str) -> None:
    import re

    refusal = Width(**settings).refuses(build_model().config.to_dict())
    assert refusal is not None and re.search(words, refusal.reason), refusal
    assert Width(**settings).changed_config({"hidden_size": 64, "intermediate_size": 128})["intermediate_size"] == 128


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    config = json.loads((source / "config.json").read_text("utf-8"))
    (source / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "compressed-tensors"}})
    )
    with pytest.raises(TechniqueError, match="quantized already"):
        run(tmp_path, source)


def test_activations_that_are_no_numbers_are_refused() -> None:
    model = build_model()
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3] = float("inf")
    with pytest.raises(TechniqueError, match="layer 2: importance is not finite in 2 of 4 layers"):
        Width().narrow(model, [[3, 4, 5]], 0, seed=0)


@pytest.mark.parametrize("settings", [{"ratio": 0.5}, {"neurons": 40}, {"ratio": 0.3, "multiple": 1}])
def test_the_forecast_is_of_the_model_that_is_made(tmp_path: Path, settings: dict[str, Any]) -> None:
    source = save_tiny(tmp_path / "source")
    _, metrics = run(tmp_path, source, criterion="magnitude", **settings)
    technique = Width(criterion="magnitude", **settings)
    made = technique.forecast(Workload({"model": (size_of(source),)}, Rows(), Compute(), 1e11)).size
    assert made is not None and made.parameters == pytest.approx(metrics["parameters"], rel=0.02)
    planned = technique.changed_config(json.loads((source / "config.json").read_text("utf-8")))
    assert planned["intermediate_size"] == made.shape.feed_forward == metrics["neurons"]


CHANGES = {
    "ratio": Change(0.25),
    "multiple": Change(64, {"ratio": 0.3}),
    "criterion": Change("random"),
    "neurons": Change(80),
    "calibration_rows": Change(1),
    "max_tokens": Change(8),
    "batch_size": Change(1, {"criterion": "taylor"}),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    yield Case(
        folder, one_layer_inputs(folder), {"ratio": 0.5, "calibration_rows": 8, "max_tokens": 64, "batch_size": 8}
    )
