"""Label choice by the harness and by llama.cpp: the same model gives the same labels."""

from pathlib import Path
from typing import Any

import pytest

from tasks.evaluate.models_under_test.label_choice import (
    harness_choices,
    label_grammar,
    label_tokens,
    llama_choices,
    terminate_labels,
)
from tasks.shared.engines.llama_client import LlamaClient
from tasks.shared.errors import ModelError
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.model.prompts import render
from tests.tiny_llama import save_tiny

LABELS = list("abcdefgh")  # one byte is one token in any byte-level vocabulary
ITEMS = 24


def conversation(index: int) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "You are the bot."},
        {"role": "user", "content": f"Is the kettle {index} covered for {index * 7} days?"},
    ]


def varied_contexts(tokenizer: Any) -> list[str]:
    """With random weights, choices depend on the last token, so it varies here."""
    return [render(tokenizer, conversation(index)) + str(index % 10) for index in range(ITEMS)]


def likeliest(model: Any, tokenizer: Any, text: str) -> str:
    import torch

    ids = [tokenizer(label, add_special_tokens=False)["input_ids"][0] for label in LABELS]
    with torch.inference_mode():
        logits = model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0, -1]
    return LABELS[int(logits[ids].argmax())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return load_model(folder), load_tokenizer(folder)


def test_harness_choice_is_the_likeliest_label_in_one_pass_per_item(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    contexts = varied_contexts(tokenizer)
    wanted = [likeliest(model, tokenizer, text) for text in contexts]
    seen, forward = [], model.forward

    def count(ids: Any, *args: Any, **options: Any) -> Any:
        seen.append(ids.shape[0])
        return forward(ids, *args, **options)

    monkeypatch.setattr(model, "forward", count)
    assert harness_choices(model, tokenizer, contexts, LABELS, tmp_path, batch_size=8) == wanted
    assert len(set(wanted)) > 1
    assert sum(seen) == ITEMS  # not ITEMS x labels: labels of one context share a pass


def test_braces_in_a_question_are_text(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = loaded
    text = render(tokenizer, [{"role": "user", "content": "{{ 1 + 1 }} {% what %} {x}"}])
    assert harness_choices(model, tokenizer, [text], LABELS, tmp_path) == [likeliest(model, tokenizer, text)]


def test_llama_agrees_with_transformers(folder: Path, loaded: tuple[Any, Any], tmp_path: Path) -> None:
    from tasks.shared.engines.llama_server import serve
    from tasks.shared.gguf.writer import write_gguf

    model, tokenizer = loaded
    file = tmp_path / "model.gguf"
    write_gguf(folder, file, "f16")
    talks = [conversation(index) for index in range(ITEMS)]
    contexts = varied_contexts(tokenizer)
    with serve(file, threads=2, parallel=2, context=512) as url:
        client = LlamaClient(url, 2)
        assert [client.render(talk) for talk in talks] == [render(tokenizer, talk) for talk in talks]
        assert label_tokens(client, LABELS) is not None
        biased, ruled = (llama_choices(client, contexts, LABELS, method) for method in ("bias", "grammar"))
        with pytest.raises(ModelError, match="labels"):
            llama_choices(client, contexts, ["warranty-and-repair", "a"], "bias")
        assert set(llama_choices(client, contexts[:3], ["warranty-and-repair", "a"])) <= {"warranty-and-repair", "a"}
    wanted = [likeliest(model, tokenizer, text) for text in contexts]
    assert biased == ruled
    assert (
        sum(ours == theirs for ours, theirs in zip(biased, wanted, strict=True)) >= ITEMS - 1
    )  # f16 may turn a near tie


def test_a_label_that_begins_another_is_told_from_it_by_its_end(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    import torch

    model, tokenizer = loaded
    labels = ["refund", "refund_status", "other"]
    assert terminate_labels(labels) == ["refund\n", "refund_status\n", "other\n"]
    assert terminate_labels(["refund", "status"]) == ["refund", "status"] and terminate_labels(["a", "a"]) == ["a", "a"]
    contexts = varied_contexts(tokenizer)[:4]

    def likelihood(context: str, label: str) -> float:
        before, whole = (
            tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
            for text in (context, context + label)
        )
        with torch.inference_mode():
            scores = model(input_ids=whole).logits[0].log_softmax(-1)  # (length, vocabulary)
        places = range(before.shape[1], whole.shape[1])
        return sum(float(scores[place - 1, whole[0, place]]) for place in places)

    wanted = [max(labels, key=lambda label: likelihood(context, f"{label}\n")) for context in contexts]
    assert harness_choices(model, tokenizer, contexts, labels, tmp_path, batch_size=4) == wanted
    written = (tmp_path / "support_intent.jsonl").read_text(encoding="utf-8")
    assert '"choices": ["refund\\n", "refund_status\\n", "other\\n"]' in written
    harness_choices(model, tokenizer, contexts[:1], ["a", "b"], tmp_path)
    assert '"choices": ["a", "b"]' in (tmp_path / "support_intent.jsonl").read_text(encoding="utf-8")


class Spelling(LlamaClient):
    """Client with one token per character that answers with the longest label."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9/v1", 1)
        self.bodies: list[dict[str, Any]] = []

    def tokens(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def complete(self, prompt: str | list[int], max_tokens: int, **options: Any) -> dict[str, Any]:
        self.bodies.append({"max_tokens": max_tokens, **options})
        return {"text": "refund_status\n"}


def test_the_grammar_has_the_line_break_too_and_single_tokens_have_none() -> None:
    client = Spelling()
    assert llama_choices(client, ["x"], ["refund", "refund_status"]) == ["refund_status"]
    llama_choices(client, ["x"], ["a", "b"])
    assert client.bodies == [
        {"grammar": 'root ::= "refund\\n" | "refund_status\\n"', "max_tokens": 18},
        {"logit_bias": [[97, 100.0], [98, 100.0]], "max_tokens": 1},
    ]


def test_grammar_quotes_labels() -> None:
    assert label_grammar(["a", 'b"c']) == 'root ::= "a" | "b\\"c"'
