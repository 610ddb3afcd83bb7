"""Tokenizers with fewer tokens: the texts they were chosen by are cut as before, any other text comes back whole."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.prune.tokens.tokenizer import (
    numbered,
    settings_of_fewer,
    take_apart,
    trimmed,
    used_tokens,
    with_fewer_tokens,
)
from tasks.prune.vocabulary import Vocabulary
from tasks.shared.errors import TechniqueError
from tests.tiny_llama import SPECIAL, build_tokenizer, sentences
from tests.tiny_tokenizers import BEGIN, llama3_like, sentencepiece_like, wrap

FAMILIES: dict[str, Callable[[], Any]] = {
    "byte-level": build_tokenizer,
    "llama 3": llama3_like,
    "gemma": sentencepiece_like,
    "llama 2": lambda: sentencepiece_like(prefix=True),
}
ROWS = 10_000
TALK = f"{SPECIAL[1]}user\nIs it 45 days, or 3.95?{SPECIAL[2]}\n"
every_family = pytest.mark.parametrize("family", FAMILIES)
writing = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
"""Any text that UTF-8 can hold."""
corpora = st.lists(st.sampled_from([*sentences(30, seed=5), "né è ß", "漢字 🙂"]) | writing, min_size=1, max_size=4)


@cache
def whole(family: str) -> Any:
    return FAMILIES[family]()


def fewer(tokenizer: Any, texts: list[str], **settings: Any) -> Any:
    """The tokenizer trimmed to texts, in memory."""
    tokens = take_apart(tokenizer, "test")
    used = set().union(*used_tokens(tokenizer, texts))
    chosen = Vocabulary(**({"size": 0, "multiple": 1, "numbers": False} | settings)).choose(tokens, used, ROWS)
    specials = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token")}
    return wrap(with_fewer_tokens(tokens, numbered(tokens, chosen)), **specials)


def decoded(tokenizer: Any, text: str) -> str:
    return str(
        tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], clean_up_tokenization_spaces=False)
    )


@every_family
@settings(max_examples=30, deadline=None)
@given(texts=corpora, other=writing)
def test_known_texts_are_cut_as_before_and_any_text_comes_back(family: str, texts: list[str], other: str) -> None:
    tokenizer = whole(family)
    small = fewer(tokenizer, texts)
    assert used_tokens(small, texts) == used_tokens(tokenizer, texts)
    for text in (*texts, other, TALK + other):
        assert decoded(small, text) == decoded(tokenizer, text)
        if (
            family != "llama 2" and "▁" not in text
        ):  # its decoder takes one space away, and ▁ is a space to SentencePiece
            assert decoded(small, text) == text


@every_family
@settings(max_examples=15, deadline=None)
@given(texts=corpora, size=st.sampled_from([0, 330, 420]))
def test_trimming_again_by_the_same_texts_keeps_the_same(family: str, texts: list[str], size: int) -> None:
    small = fewer(whole(family), texts, size=size, multiple=8)
    assert fewer(small, texts, size=size, multiple=8).get_vocab() == small.get_vocab()


@every_family
def test_tokens_that_no_text_uses_are_gone_and_the_others_keep_their_order(family: str) -> None:
    tokenizer = whole(family)
    small = fewer(tokenizer, ["postage costs"])
    assert len(small) < len(tokenizer) - 80
    by_new = sorted(small.get_vocab(), key=small.get_vocab().__getitem__)
    assert by_new == sorted(by_new, key=tokenizer.get_vocab().__getitem__)
    assert sorted(small.get_vocab().values()) == list(range(len(small)))


def test_templates_name_the_new_ids() -> None:
    small = fewer(llama3_like(), ["kettle"])
    assert small("kettle")["input_ids"][0] == small.get_vocab()[BEGIN] == small.bos_token_id < len(small)
    assert len(small("kettle")["input_ids"]) > 1


def test_ids_of_older_post_processors_are_renumbered() -> None:
    content = json.loads(build_tokenizer().backend_tokenizer.to_str())
    content["post_processor"] = {
        "type": "RobertaProcessing", "sep": [SPECIAL[2], 2], "cls": [SPECIAL[1], 1], "trim_offsets": True, "add_prefix_space": False,
    }  # fmt: skip
    content["padding"] = {
        "strategy": {"Fixed": 4}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": SPECIAL[0],
    }  # fmt: skip
    tokens = take_apart(wrap(content), "test")
    new = {token: place for place, token in enumerate(reversed(numbered(tokens, tokens.ids)))}
    small = with_fewer_tokens(tokens, new)
    assert small["post_processor"]["sep"] == [SPECIAL[2], len(new) - 3]
    assert small["padding"]["pad_id"] == len(new) - 1


def test_free_places_and_whole_words_go_and_stay_as_asked() -> None:
    kept, dropped = (fewer(llama3_like(), ["kettle"], reserved=reserved).get_vocab() for reserved in (True, False))
    assert kept.keys() - dropped.keys() == {"<|reserved_special_token_0|>", "<|reserved_special_token_1|>"}
    named = fewer(llama3_like(), ["<|reserved_special_token_1|>"], reserved=False).get_vocab()
    assert named.keys() - dropped.keys() == {"<|reserved_special_token_1|>"}, "texts use it"
    assert "Ġunreachable" in fewer(llama3_like(), ["an unreachable"]).get_vocab(), (
        "found as a whole word, without merges"
    )
    assert "Ġunreachable" not in kept


def test_settings_forget_what_is_gone_so_that_loading_does_not_add_it_again() -> None:
    tokens = take_apart(llama3_like(), "test")
    gone, left = "<|reserved_special_token_0|>", BEGIN
    new = numbered(tokens, {BEGIN, "a"})
    found = settings_of_fewer(
        {
            "added_tokens_decoder": {str(tokens.ids[gone]): {"content": gone}, str(tokens.ids[left]): {"content": left}},
            "extra_special_tokens": [gone, left], "image_token": gone, "bos_token": {"content": left},
            "bos_token_id": tokens.ids[left], "unk_token_id": tokens.ids[gone], "model_max_length": 7,
        },
        tokens, new,
    )  # fmt: skip
    assert found == {
        "added_tokens_decoder": {"1": {"content": left}}, "extra_special_tokens": [left], "bos_token": {"content": left},
        "bos_token_id": 1, "unk_token_id": None, "model_max_length": 7,
    }  # fmt: skip


@every_family
def test_it_is_read_from_its_folder_as_it_was_made(family: str, tmp_path: Path) -> None:
    tokenizer, tokens = whole(family), take_apart(whole(family), "test")
    new = numbered(tokens, Vocabulary(size=0).choose(tokens, {"a"}, ROWS))
    small = trimmed(tokenizer, tokens, new, tmp_path)
    assert small.get_vocab() == new
    assert small.eos_token == tokenizer.eos_token and small.eos_token_id == new[small.eos_token]


def test_unigram_and_wordpiece_are_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    for model in (
        models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0),
        models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"),
    ):
        with pytest.raises(TechniqueError, match="byte-pair encoding"):
            take_apart(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model)), "here")


def test_without_bytes_to_fall_back_on_it_is_refused() -> None:
    with pytest.raises(TechniqueError, match="256 bytes"):
        take_apart(sentencepiece_like(fallback=False), "here")
