"""Weights spread over two processes (FSDP) give the curve and the model of one process that has them all."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.distill.sft import SFT
from tasks.distill.training.loop import train_model
from tasks.shared.errors import MachineError, TechniqueError
from tasks.shared.model.loading import load_model
from tests.sharding import shard_on_cpus
from tests.tiny_llama import build_model, chats, empty_run, save_tiny, with_compute
from tests.two_terms import TwoTerms
from tests.unit.tasks.distill.training.test_processes import SETTINGS, curve, without_gradients

SHARDED = {"processes": 2, "sharding": "fsdp"}


@pytest.mark.parametrize(
    ("tied", "settings"),
    [
        (True, {"lora": {"rank": 4}}),
        # At 3e-3, a weight whose last bit differs in float32 is soon rounded to another number in bfloat16
        (False, {"precision": "bfloat16", "learning_rate": 3e-4}),
        pytest.param(True, {"qat": {"grid": "int4_symmetric", "scales": "learned"}}, marks=pytest.mark.slow),
        *(
            pytest.param(tied, settings, marks=pytest.mark.slow)
            for tied in (True, False)
            for settings in ({}, {"gradient_checkpointing": True}, {"frozen_layers": 1}, {"packing": True})
        ),
    ],
)
def test_spread_weights_train_as_whole_ones_do(
    tied: bool, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    shard_on_cpus(monkeypatch)
    model = save_tiny(tmp_path / "model", build_model(num_hidden_layers=2, tie_word_embeddings=tied))
    made = []
    rounded = settings.get("precision") == "bfloat16"  # otherwise in one process: its batches have other shapes
    for name, fault, more in (("alone", "", {"processes": 2 if rounded else 1}), ("spread", "want half", SHARDED)):
        out, run = empty_run(tmp_path, name)
        figures = train_model(
            SFT(**SETTINGS | settings), model, chats(21), TwoTerms(fault), out, with_compute(run, **more)
        )
        made.append((out, figures))
    (alone, expected), (spread, found) = made
    assert len(curve(alone)) >= 2
    for one, two in zip(curve(alone), curve(spread), strict=True):
        assert two == pytest.approx(without_gradients(one), rel=2e-5, abs=1e-6)
    assert (found["optimizer_steps"], found["epochs"]) == (expected["optimizer_steps"], expected["epochs"])
    assert sorted(file.name for file in spread.iterdir()) == sorted(file.name for file in alone.iterdir())
    source, *configs = (json.loads((folder / "config.json").read_text("utf-8")) for folder in (model, alone, spread))
    assert configs[0] == configs[1] and all(config["use_cache"] is source["use_cache"] for config in configs)
    before = load_model(model).state_dict()
    first, second = (load_model(out).state_dict() for out in (alone, spread))
    assert first.keys() == second.keys() and any(not torch.equal(first[name], before[name]) for name in first)
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-2, atol=1e-4)  # saved in bfloat16


@pytest.mark.slow
def test_a_spread_training_that_was_killed_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_on_cpus(monkeypatch)
    model = save_tiny(tmp_path / "model", build_model(num_hidden_layers=2))
    out, run = empty_run(tmp_path, "whole")
    whole = with_compute(run, **SHARDED)
    train_model(SFT(**SETTINGS), model, chats(21), TwoTerms(), out, whole)
    expected = curve(out)
    out, run = empty_run(tmp_path, "cut")
    cut = with_compute(run, **SHARDED, checkpoint_s=0)
    with pytest.raises(MachineError, match="signal 9"):
        train_model(SFT(**SETTINGS), model, chats(21), TwoTerms("late kill"), out, cut)
    assert [path.parent.name for path in cut.scratch.glob("checkpoints/*/complete.json")] == ["checkpoint-2"]
    train_model(SFT(**SETTINGS), model, chats(21), TwoTerms(), out, cut)
    assert curve(out) == expected


def test_without_the_switch_of_these_tests_cpus_are_refused(tmp_path: Path) -> None:
    out, run = empty_run(tmp_path, "spread")
    model = save_tiny(tmp_path / "model", build_model(num_hidden_layers=1))
    with pytest.raises(TechniqueError, match=r"runtime\.sharding=none"):
        train_model(SFT(**SETTINGS), model, chats(21), TwoTerms(), out, with_compute(run, **SHARDED))
