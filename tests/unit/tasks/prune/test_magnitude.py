"""Magnitude pruning: exact zeros where weights were smallest, embedding and head untouched, settings checked when planned."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from flows.planning.sizes import size_of
from tasks.prune.magnitude import Magnitude
from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Rows, Workload
from tasks.shared.model.loading import load_model
from tasks.shared.model.masks import follows, read_masks
from tasks.shared.model.sizes import weight_bytes
from tasks.shared.technique import Compute
from tests.family_table import configuration
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, empty_run, inputs_of, one_layer_inputs, save_tiny

SMALL = {"num_hidden_layers": 2}
MATRICES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def pruned(folder: Path, technique: Any, model: Any = None) -> tuple[Any, Any, Path, dict[str, Any]]:
    """The model before and after, the output folder and the figures."""
    source = save_tiny(folder / "source", model or build_model(**SMALL))
    out, run = empty_run(folder)
    metrics = technique(inputs_of(source), out, run)
    return load_model(source), load_model(out), out, metrics


def test_each_matrix_loses_exactly_its_smallest_weights_and_nothing_else_changes(tmp_path: Path) -> None:
    before, after, out, metrics = pruned(tmp_path, Magnitude(sparsity=0.3))
    masks = read_masks(out)
    assert masks is not None and len(masks.tensors) == 2 * len(MATRICES) == metrics["pruned_matrices"]
    others = dict(after.named_parameters())
    for name, weight in before.named_parameters():
        other, kept = others[name], weight.detach().bfloat16().float()
        if name.split(".")[-2] not in MATRICES:
            assert name not in masks.tensors and torch.equal(other, kept), "embedding, norms and head stay"
            continue
        zeros = other == 0
        assert int(zeros.sum()) == round(0.3 * weight.numel()) == masks.tensors[name].zeros
        assert torch.equal(other, kept * ~zeros) and weight[zeros].abs().max() <= weight[~zeros].abs().min()
    assert after.get_output_embeddings().weight is after.get_input_embeddings().weight


def test_zeros_save_room_in_an_archive_only(tmp_path: Path) -> None:
    _, _, out, metrics = pruned(tmp_path, Magnitude(sparsity=0.75))
    (tmp_path / "dense").mkdir()
    _, _, dense, unpruned = pruned(tmp_path / "dense", Magnitude(sparsity=0.0))
    assert weight_bytes(out) == weight_bytes(dense) == metrics["size_bytes"]
    assert metrics["source_archive_bytes"] == unpruned["source_archive_bytes"] == unpruned["archive_bytes"]
    assert metrics["archive_bytes"] < 0.8 * metrics["source_archive_bytes"]
    masks = read_masks(dense)
    assert masks is not None and masks.sparsity == 0.0, "a model without zeros has masks without zeros"


def test_over_the_model_the_total_is_exact_and_small_matrices_lose_more(tmp_path: Path) -> None:
    model = build_model(**SMALL)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(0.2)
    _, _, out, metrics = pruned(tmp_path, Magnitude(sparsity=0.4, scope="model"), model)
    masks = read_masks(out)
    assert masks is not None
    shares = {name: mask.zeros / (mask.shape[0] * mask.shape[1]) for name, mask in masks.tensors.items()}
    weights = sum(mask.shape[0] * mask.shape[1] for mask in masks.tensors.values())
    assert metrics["zeros"] == round(0.4 * weights)
    assert shares["model.layers.0.mlp.up_proj.weight"] > 0.9 > 2 * shares["model.layers.1.mlp.up_proj.weight"]


def test_a_pattern_is_exact_in_every_group(tmp_path: Path) -> None:
    _, after, out, metrics = pruned(tmp_path, Magnitude(pattern="2:4", scope="model"))
    masks = read_masks(out)
    assert masks is not None and masks.pattern == "2:4" and metrics["sparsity"] == 0.5
    for name in masks.tensors:
        weight = after.get_parameter(name)
        assert follows(weight, "2:4") and int((weight == 0).sum()) == weight.numel() // 2


def test_a_pattern_is_text_or_what_yaml_makes_of_it() -> None:
    assert Magnitude(pattern=2 * 60 + 4) == Magnitude(pattern="2:4"), "YAML reads 2:4 as a number to base 60"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("4:4", "removes nothing"), ("4:2", "removes nothing"), ("0:4", "no pattern"), ("half", "no pattern"), (0.5, "no pattern")],
)  # fmt: skip
def test_other_patterns_are_refused(pattern: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Magnitude(pattern=pattern)


def test_a_pattern_that_does_not_divide_is_refused_when_planned_and_when_run(tmp_path: Path) -> None:
    with pytest.raises(TechniqueError, match=r"groups of 48 do not divide 1 input sizes: hidden_size \(in=64\)"):
        Magnitude(pattern="24:48").check_widths({"hidden_size": 64, "intermediate_size": 96})
    with pytest.raises(TechniqueError, match="groups of 48 do not divide"):
        pruned(tmp_path, Magnitude(pattern="24:48"))
    assert not list((tmp_path / "step-out").iterdir())


def test_a_sparsity_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TechniqueError, match=r"nothing is left of model\.layers\.0\.self_attn\.q_proj"):
        pruned(tmp_path, Magnitude(sparsity=0.99999))
    assert not list((tmp_path / "step-out").iterdir())


def test_families_without_a_linear_layer_for_each_matrix_are_refused_when_planned() -> None:
    for name in ("mixtral", "qwen3_moe"):
        refusal = Magnitude().refuses(configuration(name))
        assert refusal is not None and "experts" in refusal.reason
    assert Magnitude().refuses(configuration("gpt2")) is None
    refusal = Magnitude(pattern="2:4").refuses(configuration("gpt2"))
    assert refusal is not None and "inputs first" in refusal.reason


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", build_model(num_hidden_layers=1))
    text = (source / "config.json").read_text("utf-8")
    (source / "config.json").write_text(text.replace("{", '{"quantization_config": {"quant_method": "compressed-tensors"},', 1), "utf-8")  # fmt: skip
    out, run = empty_run(tmp_path)
    with pytest.raises(TechniqueError, match="quantized already"):
        Magnitude()(inputs_of(source), out, run)


def test_the_forecast_does_not_promise_a_smaller_file(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    size = Magnitude(sparsity=0.9).forecast(Workload({"model": (size_of(source),)}, Rows(), Compute(), 1e11)).size
    assert size is not None and size.parameters == size_of(source).parameters


CHANGES = {
    "sparsity": Change(0.25),
    "pattern": Change("2:4"),
    "check_rows": Change(4),
    "max_tokens": Change(16),
    "scope": Change("model"),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    """One layer, since all are treated alike."""
    yield Case(folder, one_layer_inputs(folder), {"max_tokens": 48})
