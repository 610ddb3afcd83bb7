"""SparseGPT: less error than Wanda on a trained model, exact zeros, and the identity without sparsity."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tasks.prune.magnitude import Magnitude
from tasks.prune.sparsegpt import SparseGPT
from tasks.shared.model.loading import load_model
from tasks.shared.model.masks import follows, read_masks
from tasks.shared.model.prunable import matrices_of, view_of
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, empty_run, inputs_of, one_layer_inputs, save_tiny, write_corpus
from tests.unit.tasks.prune.test_wanda import by_wanda, calibration_error


@pytest.mark.parametrize("pattern", ["", "2:4"])
def test_outputs_of_a_trained_model_change_less_than_by_wanda(pattern: str) -> None:
    found = calibration_error(SparseGPT(pattern=pattern, block_size=32).cut_layer)
    assert found < 0.8 * calibration_error(by_wanda(pattern))


def test_without_sparsity_the_model_stays_as_it_is(tmp_path: Path) -> None:
    source, corpus = save_tiny(tmp_path / "source", build_model(num_hidden_layers=2)), write_corpus(tmp_path / "corpus")
    out, run = empty_run(tmp_path)
    metrics = SparseGPT(sparsity=0.0, calibration_rows=4)(inputs_of(source, corpus), out, run)
    after = load_model(out).state_dict()
    assert all(
        torch.equal(after[name], weight.bfloat16().float()) for name, weight in load_model(source).state_dict().items()
    )
    assert metrics["zeros"] == 0 and metrics["archive_bytes"] == metrics["source_archive_bytes"]


@pytest.mark.parametrize("pattern", ["", "2:4"])
def test_a_masked_model_keeps_its_zeros_and_gets_more(tmp_path: Path, pattern: str) -> None:
    source, corpus = save_tiny(tmp_path / "source", build_model(num_hidden_layers=2)), write_corpus(tmp_path / "corpus")
    first, run = empty_run(tmp_path, "first")
    Magnitude(sparsity=0.3)(inputs_of(source), first, run)
    out, run = empty_run(tmp_path, "second")
    metrics = SparseGPT(sparsity=0.6, pattern=pattern, calibration_rows=8)(inputs_of(first, corpus), out, run)
    before, after, dense = load_model(first), load_model(out), load_model(source)
    for name, part in matrices_of(after).items():
        weight, was = view_of(part), before.get_parameter(f"{name}.weight")
        assert not weight[was == 0].any()
        assert follows(weight, "2:4") if pattern else int((weight == 0).sum()) == round(0.6 * weight.numel())
        assert not torch.equal(weight[weight != 0], was[weight != 0]), "the others compensate"
    assert metrics["sparsity"] > 0.5 if pattern else metrics["sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert torch.equal(after.lm_head.weight, dense.lm_head.weight.bfloat16().float())
    masks = read_masks(out)
    assert masks is not None and masks.pattern == pattern


CHANGES = {
    "sparsity": Change(0.25),
    "pattern": Change("2:4"),
    "check_rows": Change(4),
    "max_tokens": Change(16),
    "calibration_rows": Change(4),
    "damping": Change(0.1),
    "block_size": Change(16),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    """One layer, since all are treated alike."""
    yield Case(folder, one_layer_inputs(folder), {"max_tokens": 48, "calibration_rows": 12})
