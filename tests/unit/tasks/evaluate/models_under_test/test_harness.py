"""The harness wrapper: answer cache after a kill, and offline mode."""

import json
import os
from pathlib import Path

import pytest

from tasks.evaluate.models_under_test.harness import AnswerCache, harness_model, quiet_harness
from tasks.shared.errors import ModelError
from tasks.shared.model.generation import check_logits
from tests.tiny_llama import build_model, build_tokenizer


def test_answers_stay_line_by_line_and_torn_lines_are_asked_again(tmp_path: Path) -> None:
    file = tmp_path / "new" / "answers.jsonl"
    kept = AnswerCache(file)
    kept["a"], kept["b"], kept["a"] = [-1.5, True], "words\nand more", [0.0, False]
    assert kept["a"] == [-1.5, True], "what is known stays"
    assert AnswerCache(file) == {"a": [-1.5, True], "b": "words\nand more"}, "written at once"
    for torn in ('["c", [-1', "7", '"word"', "[1, 2, 3]"):
        with file.open("a") as stream:
            stream.write(torn)
        again = AnswerCache(file)
        assert set(again) <= {"a", "b"}
        again["d"] = "after it"
        assert AnswerCache(file)["d"] == "after it"
        file.write_text(json.dumps(["a", [-1.5, True]]) + "\n")


def test_the_network_is_the_user_s_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, found in ((None, "1"), ("1", "1"), ("0", "0")):
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
        if given is not None:
            monkeypatch.setenv("HF_HUB_OFFLINE", given)
        with quiet_harness():
            assert (os.environ["HF_HUB_OFFLINE"], os.environ["HF_DATASETS_OFFLINE"]) == (found, found)


def test_logits_that_are_no_numbers_are_refused() -> None:
    import torch

    model, tokenizer = build_model(num_hidden_layers=1), build_tokenizer()
    check_logits(model, tokenizer, "The answer is")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        check_logits(model, tokenizer, "The answer is")


def test_the_harness_writes_greedily_too(tmp_path: Path) -> None:
    model = build_model(num_hidden_layers=1)
    model.generation_config.repetition_penalty = 5.0
    with harness_model(model, build_tokenizer(), 1, tmp_path / "answers.jsonl"):
        assert model.generation_config.repetition_penalty in (None, 1.0)
    assert model.generation_config.repetition_penalty == 5.0
