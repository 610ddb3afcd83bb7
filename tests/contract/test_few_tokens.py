"""Too little calibration text is told with numbers, by every technique that measures matrices or units on it."""

import logging
from pathlib import Path
from typing import Any

import pytest

from tasks.prune.budget import Budget
from tasks.prune.depth import Depth
from tasks.prune.flap import Flap
from tasks.prune.heads import Heads
from tasks.prune.hidden import Hidden
from tasks.prune.low_rank import LowRank
from tasks.prune.magnitude import Magnitude
from tasks.prune.selection.noise import ENOUGH_TOKENS, warn_noisy
from tasks.prune.sparsegpt import SparseGPT
from tasks.prune.wanda import Wanda
from tasks.prune.weight_selection import WeightSelection
from tasks.prune.width import Width
from tests.tiny_llama import empty_run, inputs_of, one_layer_inputs, save_tiny, write_corpus

FEW: dict[str, Any] = {"calibration_rows": 2, "max_tokens": 10}
INPUTS = "20 calibration tokens for matrices of up to 128 inputs"
UNITS = "20 calibration tokens: what each unit gives is known to within 32 % at best"
TOLD = {
    "wanda": (Wanda(check_rows=2, **FEW), INPUTS),
    "sparsegpt": (SparseGPT(check_rows=2, **FEW), INPUTS),
    "low_rank": (LowRank(check_rows=2, **FEW), INPUTS),
    "width": (Width(ratio=0.5, **FEW), UNITS),
    "heads": (Heads(ratio=0.5, **FEW), UNITS),
    "hidden": (Hidden(ratio=0.5, **FEW), UNITS),
    "flap": (Flap(ratio=0.5, **FEW), UNITS),
    "means": (Flap(ratio=0.5, criterion="magnitude", **FEW), UNITS),
    "budget": (Budget(ratio=0.05, **FEW), UNITS),
    "weight_selection": (WeightSelection(hidden_size=32, **FEW), UNITS),
}
SILENT = {
    "magnitude": Magnitude(check_rows=2, max_tokens=10),
    "by_weights": Width(ratio=0.5, criterion="magnitude", **FEW),
    "enough": Width(ratio=0.5, calibration_rows=24),
}
"""Techniques that read no text to choose, and one that reads enough."""


def warnings_of(technique: Any, folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings of a step on tokens; another one, that the split is small, does not count."""
    out, run = empty_run(folder)
    with caplog.at_level(logging.WARNING):
        technique(one_layer_inputs(folder), out, run)
    return [record.getMessage() for record in caplog.records if "calibration tokens" in record.getMessage()]


@pytest.mark.parametrize("name", TOLD)
def test_few_tokens_are_told_once(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    technique, words = TOLD[name]
    (told,) = warnings_of(technique, tmp_path, caplog)
    assert told.startswith(words) and " 13 times as many calibration rows" in told


@pytest.mark.parametrize("name", SILENT)
def test_without_need_nothing_is_told(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(SILENT[name], tmp_path, caplog) == []


@pytest.mark.parametrize(("settings", "told"), [({}, 1), ({"criterion": "last"}, 0), ({"layers": [1]}, 0)])
def test_depth_tells_it_where_the_text_decides(
    settings: dict[str, Any], told: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = inputs_of(save_tiny(tmp_path / "model"), write_corpus(tmp_path / "corpus"))
    out, run = empty_run(tmp_path)
    Depth(**FEW | settings)(inputs, out, run)
    assert sum(UNITS in record.getMessage() for record in caplog.records) == told


def test_the_limit_of_tokens(caplog: pytest.LogCaptureFixture) -> None:
    warn_noisy(ENOUGH_TOKENS)
    assert not caplog.text
    warn_noisy(ENOUGH_TOKENS - 1)
    assert "about 2 times as many calibration rows bring 256 tokens and 9 %" in caplog.text
