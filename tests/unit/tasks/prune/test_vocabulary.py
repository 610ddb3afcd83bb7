"""Vocabulary trimming: a model that has fewer tokens and is otherwise the same."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.planning.sizes import size_of
from tasks.export.gguf import Gguf
from tasks.prune.tokens.record import VOCABULARY_FILE, Trimming
from tasks.prune.vocabulary import Vocabulary, check_cuts
from tasks.shared.errors import DataError, TechniqueError
from tasks.shared.forecast import Rows, Workload
from tasks.shared.formats.articles import Article, write_articles
from tasks.shared.formats.rows import read_rows
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.model.saving import save_model
from tasks.shared.model.sizes import parameter_count, weight_bytes
from tasks.shared.technique import Artifact, Compute, Inputs, Kind
from tests.settings_case import Case, Change
from tests.tiny_llama import SPECIAL, build_model, build_tokenizer, empty_run, save_tiny, write_corpus
from tests.tiny_llama import inputs_of as gguf_inputs
from tests.tiny_tokenizers import llama3_like, sentencepiece_like


def inputs_of(model: Path, *data: Path) -> Inputs:
    corpora = tuple(Artifact(folder.name, Kind.CORPUS, folder) for folder in data)
    return Inputs({"model": (Artifact("model", Kind.MODEL, model),), "data": corpora})


def trim(tmp_path: Path, source: Path, **settings: Any) -> tuple[Path, Any]:
    """Output folder and figures."""
    corpus = tmp_path / "corpus"
    if not corpus.exists():
        write_corpus(corpus, rows=2)
    out, run = empty_run(tmp_path, f"step{len(list(tmp_path.iterdir()))}")
    return out, Vocabulary(**({"size": 0, "multiple": 1} | settings))(inputs_of(source, corpus), out, run)


def record(folder: Path) -> Trimming:
    return Trimming.model_validate_json((folder / VOCABULARY_FILE).read_bytes())


def save_with(folder: Path, tokenizer: Any, **overrides: Any) -> Path:
    save_model(build_model(**overrides), tokenizer, folder, "float32")
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_the_forecast_is_of_the_tokens_that_are_asked_for(tmp_path: Path, tied: bool) -> None:
    source = save_tiny(tmp_path / "source", build_model(tie_word_embeddings=tied))
    work = Workload({"model": (size_of(source),)}, Rows(), Compute(), 1e11)
    out, found = trim(tmp_path, source, size=356, multiple=8)
    made = Vocabulary(size=356, multiple=8).forecast(work).size
    assert made is not None and found["tokens"] == 360 < work.size().shape.vocabulary
    assert (made.parameters, made.shape.vocabulary) == (parameter_count(out), 360)
    assert made.bytes == pytest.approx(weight_bytes(out), rel=0.03), "and a header"
    for size in (0, 10**6):
        whole = Vocabulary(size=size).forecast(work).size
        assert whole is not None and whole.parameters == parameter_count(source)


@pytest.mark.parametrize("tied", [True, False])
def test_the_saved_model_says_of_the_kept_tokens_what_it_said_before(tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = save_tiny(tmp_path / "source", build_model(tie_word_embeddings=tied))
    out, found = trim(tmp_path, source)
    small, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (small.lm_head.weight is small.model.embed_tokens.weight) == tied
    tokenizer, old_ids = AutoTokenizer.from_pretrained(out), list(record(out).old_ids)
    assert len(tokenizer) == len(old_ids) == small.config.vocab_size == small.lm_head.weight.shape[0] == found["tokens"]
    whole, before = load_model(source), load_tokenizer(source)
    for parameter in whole.parameters():  # as it is saved
        parameter.data = parameter.data.to(torch.bfloat16).float()
    for row in read_rows(tmp_path / "corpus" / "calibration.jsonl")[:3]:
        text = before.apply_chat_template([message.model_dump() for message in row.messages], tokenize=False)
        ids, new = (torch.tensor([each(text)["input_ids"]]) for each in (before, tokenizer))
        assert torch.equal(torch.tensor(old_ids)[new], ids)
        with torch.inference_mode():
            assert torch.equal(small.model(new).last_hidden_state, whole.model(ids).last_hidden_state)
            torch.testing.assert_close(small(new).logits, whole(ids).logits[..., old_ids], rtol=0, atol=1e-6)


def test_special_tokens_are_named_by_their_new_ids_everywhere(tmp_path: Path) -> None:
    tokenizer = llama3_like()
    source = save_with(tmp_path / "source", tokenizer)
    old_pad = tokenizer.pad_token_id
    settings = json.loads((source / "generation_config.json").read_text("utf-8"))
    stops = [tokenizer.eos_token_id, tokenizer.bos_token_id]
    (source / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": stops}), "utf-8")
    out, _ = trim(tmp_path, source, reserved=False)
    small, model = load_tokenizer(out), load_model(out)
    assert small.pad_token_id < old_pad and model.config.pad_token_id == small.pad_token_id
    assert model.config.eos_token_id == small.eos_token_id == small.get_vocab()[SPECIAL[2]]
    assert model.generation_config.eos_token_id == [small.eos_token_id, small.bos_token_id]
    assert small.chat_template and small.bos_token == tokenizer.bos_token


def test_trimming_again_by_the_same_corpus_changes_nothing(tmp_path: Path) -> None:
    once, _ = trim(tmp_path, save_tiny(tmp_path / "source"), size=330, multiple=8)
    twice, found = trim(tmp_path, once, size=330, multiple=8)
    assert record(twice).old_ids == tuple(range(found["tokens"]))
    assert (once / "tokenizer.json").read_bytes() == (twice / "tokenizer.json").read_bytes()
    assert (once / "model.safetensors").read_bytes() == (twice / "model.safetensors").read_bytes()


def test_figures_are_those_of_the_folder(tmp_path: Path) -> None:
    out, found = trim(tmp_path, save_tiny(tmp_path / "source"), size=300, multiple=8)
    assert found["tokens"] % 8 == 0 and found["tokens"] >= 300 and found["rows_before"] == 512
    assert found["parameters_before"] - found["parameters"] == (512 - found["tokens"]) * 64
    assert found["tokens_before"] == len(build_tokenizer()) and found["merges"] < found["merges_before"]
    assert 0 < found["unseen_tokens_kept"] <= 1
    assert found["unseen_tokens_per_text"] >= found["unseen_tokens_per_text_before"]
    assert found["used"] <= found["tokens"] == len(load_tokenizer(out))


def test_a_token_without_a_row_goes(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    rows = len(tokenizer)
    source = save_tiny(tmp_path / "source", build_model(vocab_size=rows))
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(source)
    out, _ = trim(tmp_path, source, size=10_000)
    assert "<image>" in (source / "tokenizer.json").read_text("utf-8")
    assert "<image>" not in (out / "tokenizer.json").read_text("utf-8") and len(load_tokenizer(out)) == rows


def test_a_sentencepiece_model_is_trimmed_too(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like()
    tokenizer.chat_template = build_tokenizer().chat_template
    source = save_with(tmp_path / "source", tokenizer, vocab_size=len(tokenizer) + 5)
    out, found = trim(tmp_path, source)
    assert found["tokens"] < found["tokens_before"] == found["rows_before"] - 5
    assert (
        load_tokenizer(out).decode(load_tokenizer(out)("漢字 né", add_special_tokens=False)["input_ids"]) == "漢字 né"
    )


def test_llama_cpp_cuts_and_answers_as_the_trimmed_model(tmp_path: Path) -> None:
    source, _ = trim(tmp_path, save_tiny(tmp_path / "source"))
    out, run = empty_run(tmp_path)
    found = Gguf(scheme="f16", embedding="same", prompts=3, tokens=2, min_top1=0.95, max_kl=0.001)(
        gguf_inputs(source), out, run
    )
    assert found["positions"] > 2, "texts outside of the corpus, in pieces: the gate compares the cuts too"


def test_a_text_that_is_cut_in_another_way_is_told() -> None:
    with pytest.raises(TechniqueError, match="from token 0 on"):
        check_cuts(build_tokenizer(), ["kettle"], [["k", "elephant"]])


def test_no_texts_are_refused(tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    with pytest.raises(DataError, match="no texts"):
        Vocabulary()(inputs_of(save_tiny(tmp_path / "source")), out, run)


def test_quantized_weights_are_refused_when_they_come_from_elsewhere(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    config = json.loads((source / "config.json").read_text("utf-8"))
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "x"}}), "utf-8")
    with pytest.raises(TechniqueError, match="quantized already"):
        trim(tmp_path, source)


CHANGES = {
    "size": Change(400),
    "multiple": Change(64),
    "numbers": Change(False),
    "reserved": Change(False),
    "articles": Change(False),
    "texts": Change(lambda case: [case.more["text"]]),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    """A tokenizer with free places and numbers, and a corpus whose article and manual use words of their own."""
    source = save_with(folder / "model", llama3_like())
    corpus = write_corpus(folder / "corpus", rows=4)
    write_articles(corpus / "articles.jsonl", [Article(id="a", title="a", topic="returns", text="unreachable")])
    text = folder / "manual.txt"
    text.write_text("kettle postage warranty lasts 24 months accepted", "utf-8")
    yield Case(folder, inputs_of(source, corpus), {"size": 0, "multiple": 1}, more={"text": str(text)})
