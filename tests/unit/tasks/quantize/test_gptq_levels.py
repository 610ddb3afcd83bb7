"""GPTQ on levels of GGUF: nearer than rounding, copied unchanged by the export, and what it refuses."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from tasks.export.gguf import Gguf
from tasks.prune.magnitude import Magnitude
from tasks.quantize import gptq_levels
from tasks.quantize.gptq_levels import COMPARED, NEAREST_SECONDS_PER_WEIGHT, GptqLevels
from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Dimensions, Rows, Size, Workload
from tasks.shared.model.agreement import logits_of, mean_divergence
from tasks.shared.model.calibration import calibration_ids, split_calibration
from tasks.shared.model.grids import BLOCKS, Grid, find_levels, round_to_grid
from tasks.shared.model.linear_layers import input_sizes
from tasks.shared.model.loading import load_model
from tasks.shared.model.masks import read_masks
from tasks.shared.technique import Compute, Inputs
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

Levels = Literal["iq4_nl", "q4_0", "q2_0", "tq2_0"]


def folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(("grid", "most"), [("iq4_nl", 0.1), ("q4_0", 0.1), ("q2_0", 0.5)])
def test_every_matrix_is_on_the_grid_and_nearer_than_by_rounding(
    trained: Inputs, tmp_path: Path, grid: Levels, most: float
) -> None:
    out, run = empty_run(tmp_path)
    metrics = GptqLevels(grid=grid, calibration_rows=24)(trained, out, run)
    weights = load_file(out / "model.safetensors")
    matrices = [weight for name, weight in weights.items() if "proj" in name]
    assert len(matrices) >= 7
    assert all(find_levels(weight.unflatten(-1, (-1, BLOCKS[grid])), grid) is not None for weight in matrices)
    assert 0 < float(metrics["output_error"]) < float(metrics["rounding_error"]) < most
    assert 0 < float(metrics["kl_to_source"]) < 2 * most


@pytest.mark.parametrize(("grid", "own"), [("q4_0", "q4_0"), ("q2_0", "q2_0"), ("tq2_0", "iq4_nl")])
def test_held_out_divergence_is_not_above_rounding_s(
    trained: Inputs, tmp_path: Path, grid: Levels, own: Levels
) -> None:
    """The step's own figure for rounding is that of a model whose layers were rounded; tq2_0's blocks do not fill these rows."""
    out, run = empty_run(tmp_path)
    metrics = GptqLevels(grid=grid, calibration_rows=24)(trained, out, run)
    source, rounded = (load_model(trained.one("model").path) for _ in range(2))
    for name in input_sizes(rounded):
        weight = rounded.get_submodule(name).weight
        weight.data = round_to_grid(weight.data, Grid(own, BLOCKS[own]))
    _, held_out = split_calibration(trained.one("calibration").path, 24, 8)
    ids = calibration_ids(build_tokenizer(), held_out, 192)
    wanted = mean_divergence(rounded, logits_of(source, ids), ids)
    assert float(metrics["rounding_kl"]) == pytest.approx(wanted, rel=1e-3)
    assert 0 < float(metrics["kl_to_source"]) < 0.9 * wanted


def test_the_step_says_when_it_is_worse_than_rounding(
    trained: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gptq_levels, "mean_divergence", lambda *_: 0.0)
    out, run = empty_run(tmp_path)
    metrics = GptqLevels(calibration_rows=4, check_rows=1)(trained, out, run)
    assert metrics["rounding_kl"] == 0.0 and "worse than plain rounding on held-out rows" in caplog.text
    assert "export/gguf with scheme=iq4_nl may be better" in caplog.text


def test_the_forecast_includes_the_comparison_with_rounding() -> None:
    work = Workload({"model": (Size(1e9, 4e9, 0, Dimensions(1, 64, 64, 1, 64, 64, 0)),)}, Rows(), Compute(), 1e11)
    one, nine = (GptqLevels(check_rows=rows).forecast(work).seconds for rows in (1, 9))
    reading = COMPARED * work.reading(work.size(), 8 * GptqLevels().max_tokens)
    assert nine - one == pytest.approx(reading + 8 * NEAREST_SECONDS_PER_WEIGHT * 1e9)


def test_the_export_copies_levels_and_scales(tmp_path: Path) -> None:
    source, corpus = save_tiny(tmp_path / "source", build_model(num_hidden_layers=1)), write_corpus(tmp_path / "corpus")
    out, run = empty_run(folder(tmp_path / "levels"))
    GptqLevels(calibration_rows=8, check_rows=2, max_tokens=48)(inputs_of(source, corpus), out, run)
    file, run = empty_run(folder(tmp_path / "file"))
    Gguf(scheme="iq4_nl", prompts=2, tokens=2)(inputs_of(out), file, run)
    before, after = (load_model(path).state_dict() for path in (out, file / "model.gguf"))
    matrices = [name for name in before if "proj" in name]
    assert len(matrices) == 7 and all(torch.equal(before[name], after[name]) for name in matrices)


def test_masks_are_held_where_the_grid_has_a_zero(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, corpus = save_tiny(tmp_path / "source", build_model(num_hidden_layers=1)), write_corpus(tmp_path / "corpus")
    masked, run = empty_run(folder(tmp_path / "masked"))
    Magnitude(sparsity=0.5)(inputs_of(source), masked, run)
    grids: tuple[Levels, ...] = ("q4_0", "q2_0", "tq2_0", "iq4_nl")  # rows of 64: tq2_0's are iq4_nl's
    for grid in grids:
        out, run = empty_run(folder(tmp_path / grid))
        GptqLevels(grid=grid, calibration_rows=4, max_tokens=32)(inputs_of(masked, corpus), out, run)
        held, kept = read_masks(masked), read_masks(out)
        weights = load_file(out / "model.safetensors")
        assert held
        if grid in ("q4_0", "q2_0"):
            assert kept and all(kept.tensors[name].zeros >= mask.zeros for name, mask in held.tensors.items())
        else:
            assert kept is None and "iq4_nl has no zero" in caplog.text
            assert all(bool(weights[name].all()) for name in held.tensors)


def test_odd_widths_are_refused() -> None:
    with pytest.raises(TechniqueError, match=r"mlp.down \(in=172\)"):
        GptqLevels().check_widths({"mlp.down": 172, "mlp.up": 64})


CHANGES = {
    "grid": Change("q4_0"),
    "calibration_rows": Change(2),
    "damping": Change(0.9),
    "check_rows": Change(1),  # only the figures know it, and the next one
    "max_tokens": Change(16),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    yield Case(folder, one_layer_inputs(folder), {"calibration_rows": 4, "max_tokens": 32, "check_rows": 2})
