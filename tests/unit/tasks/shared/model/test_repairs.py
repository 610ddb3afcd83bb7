"""Special tokens and generation settings of a stranger's model: settled and said, or refused by name."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.shared.errors import ModelError
from tasks.shared.model.inspection import find_fault
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.model.saving import save_model
from tests.tiny_llama import build_model, build_tokenizer, save_tiny

ROWS = 381
"""Tokens of the tiny tokenizer, and here rows of the embedding too."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert len(build_tokenizer()) == ROWS
    return save_tiny(tmp_path_factory.mktemp("base"), build_model(num_hidden_layers=2, vocab_size=ROWS))


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "model"))


def edit(file: Path, settings: dict[str, Any]) -> None:
    before = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({name: value for name, value in (before | settings).items() if value != "absent"}))


def without_chatml(model: Path, **specials: Any) -> None:
    """Rename the end of turn, which is taken for the end token wherever it is known, and set the special tokens."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).write_text((model / name).read_text().replace("<|im_end|>", "<|done|>"))
    absent = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "absent")
    edit(model / "tokenizer_config.json", absent | specials)


def test_a_pad_token_without_a_row_is_left_out_and_replaced(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(model)
    edit(model / "config.json", {"pad_token_id": ROWS})
    edit(model / "generation_config.json", {"pad_token_id": ROWS})
    with caplog.at_level(logging.INFO):
        loaded, read = load_model(model), load_tokenizer(model)
    assert len(read) == ROWS and read.pad_token == "<|endoftext|>" and "[PAD]" in caplog.text
    assert max(read("a [PAD] b")["input_ids"]) < ROWS
    save_model(loaded, read, tmp_path / "saved", "float32")
    again = load_tokenizer(tmp_path / "saved")
    assert len(again) == ROWS and again.pad_token == "<|endoftext|>"
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["pad_token_id"] == 0


def test_other_added_tokens_without_a_row_are_left_out(model: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<image>", "plain"])
    tokenizer.save_pretrained(model)
    read = load_tokenizer(model)
    assert len(read) == ROWS and "<image>" not in read.get_vocab()
    assert read.decode(read("an <image> here", add_special_tokens=False)["input_ids"]) == "an <image> here"


@pytest.mark.parametrize("kind", ["end", "template", "vocabulary"])
def test_a_tokenizer_larger_than_the_embedding_is_refused(model: Path, kind: str) -> None:
    tokenizer = build_tokenizer()
    if kind == "end":
        tokenizer.add_special_tokens({"eos_token": "</done>"})
    elif kind == "template":
        tokenizer.add_tokens(["<think>"])
        tokenizer.chat_template += "<think>"
    else:
        from tests.tiny_tokenizers import sentencepiece_like

        tokenizer = sentencepiece_like()
    tokenizer.save_pretrained(model)
    with pytest.raises(ModelError, match=r"no row in the embedding of 381 rows.*\n.*\n.*resize_token_embeddings"):
        load_tokenizer(model)
    assert "no row in the embedding" in str(find_fault(model))


def test_an_embedding_padded_beyond_the_tokenizer_is_normal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_tiny(tmp_path, build_model(num_hidden_layers=1, vocab_size=512))
    assert find_fault(folder) is None and len(load_tokenizer(folder)) == ROWS and not caplog.text


def test_an_end_token_is_taken_from_the_configuration(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    without_chatml(model)
    edit(model / "generation_config.json", {"eos_token_id": [2, 0]})
    read = load_tokenizer(model)
    assert read.eos_token == read.pad_token == "<|done|>"
    assert "names no end token" in caplog.text and "no pad token" in caplog.text


def test_a_tokenizer_without_any_special_token_still_pads(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    without_chatml(model)
    edit(model / "config.json", {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None})
    (model / "generation_config.json").unlink()
    read = load_tokenizer(model, chat=False)
    assert read.eos_token is None and read.pad_token_id == 0 and "no pad token" in caplog.text
    assert read(["a", "a kettle"], padding=True)["attention_mask"][0][0] == 0


@pytest.mark.parametrize(
    ("settings", "written", "said"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9, "do_sample": True}, "written with do_sample=true"),
        ({"temperature": 0.0}, {"temperature": "absent"}, "temperature 0, which means greedy"),
        ({"temperature": 0.6, "early_stopping": True, "length_penalty": 2.0}, {"temperature": "absent", "early_stopping": "absent"}, "only its token ids"),
        ({"top_k": 0, "top_p": 0.5, "stop_words_ids": [[1]]}, {"top_k": 0, "stop_words_ids": [[1]]}, "written with do_sample=true"),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1, "do_sample": "absent"}, ""),
    ],
)  # fmt: skip
def test_generation_settings_that_cannot_be_written_are_written_all_the_same(
    model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    written: dict[str, Any],
    said: str,
) -> None:
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0], "pad_token_id": 0, **settings}))
    assert find_fault(model) is None
    save_model(load_model(model), load_tokenizer(model), tmp_path / "saved", "float32")
    found = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert found["eos_token_id"] == [2, 0]
    assert {name: found.get(name) or found.get(name, "absent") for name in written} == written
    assert said in caplog.text and (said or "generation_config" not in caplog.text)


def test_sampling_settings_in_the_configuration_itself_are_written_too(model: Path, tmp_path: Path) -> None:
    edit(model / "config.json", {"temperature": 0.6, "top_p": 0.9})
    (model / "generation_config.json").unlink()
    save_model(load_model(model), load_tokenizer(model), tmp_path / "saved", "float32")
    assert load_model(tmp_path / "saved").generation_config.temperature == 0.6
