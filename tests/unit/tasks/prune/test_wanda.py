"""Wanda: rows are equally sparse, and on a trained model outputs change less than by magnitude."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.prune.masking.choice import lowest_of_groups
from tasks.prune.masking.pruning import warn_few_tokens
from tasks.prune.wanda import Wanda
from tasks.shared.errors import TechniqueError
from tasks.shared.model.calibration import batches, calibration_ids
from tasks.shared.model.input_statistics import gram
from tasks.shared.model.layer_walk import walk_layers
from tasks.shared.model.loading import load_model
from tasks.shared.model.masks import read_masks
from tasks.shared.model.prunable import lowest_of_matrix, matrices_of, view_of
from tests.matrix_errors import output_error
from tests.settings_case import Case, Change
from tests.tiny_llama import (
    build_model,
    build_tokenizer,
    chats,
    empty_run,
    inputs_of,
    one_layer_inputs,
    save_tiny,
    trained_model,
    write_corpus,
)

Weights = dict[str, torch.Tensor]


@cache
def trained_problem() -> list[tuple[Weights, Weights]]:
    """Weights of every layer of a trained model, and the products of their inputs on calibration rows."""
    model, ids = trained_model(), calibration_ids(build_tokenizer(), chats(48), 48)
    found = []
    for visit in walk_layers(model, batches(ids, 16, 0)):
        parts = {name: part for name, part in visit.layer.named_modules() if isinstance(part, torch.nn.Linear)}
        found.append(({name: view_of(part) for name, part in parts.items()}, visit.input_sums(parts, gram)))
    return found


def calibration_error(cut: Callable[[Weights, Mapping[str, torch.Tensor]], None]) -> float:
    """Mean error of the outputs of all matrices of the trained model, pruned by `cut`."""
    errors = []
    for weights, products in trained_problem():
        copies = {name: weight.clone() for name, weight in weights.items()}
        cut(copies, products)
        errors += [output_error(weights[name], copies[name], products[name]) for name in weights]
    return sum(errors) / len(errors)


def by_magnitude(pattern: str) -> Callable[[Weights, Mapping[str, torch.Tensor]], None]:
    def cut(weights: Weights, _: Mapping[str, torch.Tensor]) -> None:
        for weight in weights.values():
            scores = weight.abs()
            weight *= ~(lowest_of_groups(scores, pattern) if pattern else lowest_of_matrix(scores, weight.numel() // 2))

    return cut


def by_wanda(pattern: str) -> Callable[[Weights, Mapping[str, torch.Tensor]], None]:
    return lambda weights, products: Wanda(pattern=pattern).cut_layer(
        weights, {name: each.diagonal() for name, each in products.items()}
    )


@pytest.mark.parametrize("pattern", ["", "2:4"])
def test_outputs_of_a_trained_model_change_less_than_by_magnitude(pattern: str) -> None:
    assert calibration_error(by_wanda(pattern)) < 0.95 * calibration_error(by_magnitude(pattern))


@pytest.mark.parametrize("pattern", ["", "1:4"])
def test_every_row_is_equally_sparse_and_the_head_is_not_touched(tmp_path: Path, pattern: str) -> None:
    source, corpus = save_tiny(tmp_path / "source", build_model(num_hidden_layers=2)), write_corpus(tmp_path / "corpus")
    out, run = empty_run(tmp_path)
    metrics = Wanda(sparsity=0.75, pattern=pattern, calibration_rows=8)(inputs_of(source, corpus), out, run)
    before, after = load_model(source), load_model(out)
    assert metrics["sparsity"] == 0.75 and float(metrics["kl_to_source"]) > 0
    assert int(metrics["calibration_tokens"]) > 100
    for name, part in matrices_of(after).items():
        zeros, weight = view_of(part) == 0, before.get_parameter(f"{name}.weight")
        assert (zeros.sum(-1) == 0.75 * zeros.shape[1]).all()
        assert torch.equal(view_of(part), weight.bfloat16().float() * ~zeros), "weights that stay do not change"
    assert torch.equal(after.lm_head.weight, before.lm_head.weight.bfloat16().float())
    masks = read_masks(out)
    assert masks is not None and masks.pattern == pattern


def test_a_row_without_a_weight_is_refused_when_planned() -> None:
    Wanda(sparsity=0.98).check_widths({"hidden_size": 64})
    with pytest.raises(TechniqueError, match=r"0\.995 leaves nothing of the rows of hidden_size") as caught:
        Wanda(sparsity=0.995).check_widths({"hidden_size": 64, "intermediate_size": 128})
    assert caught.value.fix == "sparsity=0.984 or less"


def test_too_few_tokens_are_counted_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    matrices = matrices_of(build_model(num_hidden_layers=1))
    warn_few_tokens(128, matrices)
    assert not caplog.text
    warn_few_tokens(100, matrices)
    assert "100 calibration tokens for matrices of up to 128 inputs" in caplog.text and "3 times as many" in caplog.text


def test_activations_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model: Any = build_model(num_hidden_layers=2)
    with torch.no_grad():
        gain = model.model.layers[0].input_layernorm.weight  # finite, as is its sum; what it gives is not
        gain.copy_(1e37 * torch.tensor([1.0, -1.0]).repeat(len(gain) // 2))
    source, corpus = save_tiny(tmp_path / "source", model), write_corpus(tmp_path / "corpus")
    out, run = empty_run(tmp_path)
    with pytest.raises(TechniqueError, match=r"not finite; the first such outputs are those of model\.layers\.0\."):
        Wanda(calibration_rows=4)(inputs_of(source, corpus), out, run)
    assert not list(out.iterdir())


CHANGES = {
    "sparsity": Change(0.25),
    "pattern": Change("2:4"),
    "check_rows": Change(4),
    "max_tokens": Change(16),
    "calibration_rows": Change(4),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    """One layer, since all are treated alike."""
    yield Case(folder, one_layer_inputs(folder), {"max_tokens": 48, "calibration_rows": 12})
