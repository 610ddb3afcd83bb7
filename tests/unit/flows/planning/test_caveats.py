"""Caveats in the plan: where a technique gives no gain that its name may promise."""

from pathlib import Path

import pytest

from flows.planning.caveats import caveat_lines
from flows.planning.plan import build_plan
from tests.family_table import Row, recipe, save_config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"scheme": "q4_k"},
            "q4_k becomes iq4_nl in 100% of the layers' weights, whose rows of 64, 128 its blocks of 256",
        ),
        ({"scheme": "q4_0"}, ""),
        ({}, ""),
    ],
)
def test_the_plan_says_which_gguf_types_do_not_fill_rows(tmp_path: Path, settings: dict[str, str], words: str) -> None:
    lines = caveat_lines(build_plan(recipe(Row("export/gguf", settings), save_config(tmp_path, "llama"))))
    assert len(lines) == (1 if words else 0)
    assert all(line.startswith(f"step: {words}") and "4.50 with scheme=iq4_nl" in line for line in lines)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("prune/low_rank", "stock loaders take no factors"),
        ("prune/layer_sharing", "no stock format holds"),
        ("prune/experts", "a token takes as many experts"),
        ("prune/magnitude", "zeros are stored and multiplied"),
        ("prune/wanda", "zeros are stored and multiplied"),
        ("prune/sparsegpt", "zeros are stored and multiplied"),
        ("prune/depth", ""),
    ],
)
def test_the_plan_says_what_a_step_does_not_give(tmp_path: Path, option: str, words: str) -> None:
    family = "mixtral" if option == "prune/experts" else "llama"
    settings = {"groups": ((0, 1),)} if option == "prune/layer_sharing" else {}
    lines = caveat_lines(build_plan(recipe(Row(option, settings), save_config(tmp_path, family))))
    assert len(lines) == (1 if words else 0)
    assert all(line.startswith(f"step: {words}") and " as before" in line for line in lines)


def test_rewound_masks_are_told_like_those_they_come_from(tmp_path: Path) -> None:
    """The row of prune/magnitude, and its masks on the early weights of a training."""
    made = recipe(Row("prune/magnitude"), save_config(tmp_path, "llama"))
    train = {"inputs": {"model": "models.student", "data": "corpus"}, "early_step": 3}
    made["steps"]["tuned"] = {"_target_": "tasks.distill.sft.SFT", **train}
    made["steps"]["step"]["inputs"]["model"] = "tuned"
    made["steps"]["ticket"] = {"_target_": "tasks.prune.rewind.Rewind", "inputs": {"model": "step", "early": "tuned"}}
    lines = dict(line.split(": ", 1) for line in caveat_lines(build_plan(made)))
    assert lines.keys() == {"step", "ticket"} and lines["step"] == lines["ticket"]
