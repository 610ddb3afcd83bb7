"""Divergence: zero for the same model, scipy's KL for others, one vocabulary; refusals."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from tasks.evaluate.divergence import Divergence
from tasks.evaluate.likelihood import next_token_divergence as following
from tasks.evaluate.likelihood.next_token_divergence import (
    DivergencePlan,
    check_vocabulary,
    common_token_ids,
    mean_divergence,
)
from tasks.evaluate.models_under_test.model_under_test import inspect_model
from tasks.shared.errors import DataError, ModelError
from tasks.shared.formats.rows import read_rows
from tasks.shared.formats.scores import Scores, read_scores
from tasks.shared.gguf.writer import write_gguf
from tasks.shared.model.encoding import text_ids
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.model.saving import save_model
from tasks.shared.technique import Artifact, Inputs, Kind
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, build_tokenizer, empty_run, overflowing_model, save_tiny, sentences
from tests.unit.tasks.evaluate.test_perplexity import asked_here, models_of, write_test

ROWS = 8


def compare(folder: Path, inputs: Inputs, **options: Any) -> tuple[Scores, Any]:
    out, run = empty_run(folder, f"step{len(list(folder.iterdir()))}")
    metrics = Divergence(**options)(inputs, out, run)
    return read_scores(out), metrics


@pytest.fixture
def here() -> Iterator[None]:
    with asked_here():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_test(tmp_path_factory.mktemp("rows") / "corpus", ROWS)


def shaken(noise: float) -> Any:
    """The tiny model with normal noise on every weight, relative to that weight's own spread."""
    import torch

    model, draw = build_model(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight += noise * weight.std() * torch.randn(weight.shape, generator=draw)
    return model


@pytest.mark.usefixtures("here")
def test_the_same_model_has_no_divergence_at_all(folder: Path, corpus: Path, tmp_path: Path) -> None:
    copy = save_tiny(tmp_path / "copy")
    for text in ("gold", "baseline"):
        scores, metrics = compare(tmp_path, models_of(folder, {"copy": copy}, corpus), text=text, max_new_tokens=6)
        assert (metrics["copy.kl"], metrics["copy.same_top"], metrics["tuned.kl"]) == (0.0, 1.0, 0.0)
        assert {item.values[name] for item in scores.items if item.measure == "kl" for name in item.values} == {0.0}
        assert {item.values[name] for item in scores.items if item.measure == "same_top" for name in item.values} == {
            1.0
        }


@pytest.mark.usefixtures("here")
def test_more_noise_more_divergence(folder: Path, corpus: Path, tmp_path: Path) -> None:
    candidates = {
        "little": save_tiny(tmp_path / "little", shaken(0.05)),
        "much": save_tiny(tmp_path / "much", shaken(0.5)),
        "other": save_tiny(tmp_path / "other", build_model(seed=5)),
    }
    scores, metrics = compare(tmp_path, models_of(folder, candidates, corpus))
    assert 0 < metrics["little.kl"] < 0.2 * metrics["much.kl"] < metrics["other.kl"]
    assert 1 > metrics["little.same_top"] > metrics["much.same_top"] > metrics["other.same_top"]
    tokenizer = load_tokenizer(folder)
    lengths = {row.id: len(text_ids(tokenizer, row.answer)) + 1 for row in read_rows(corpus / "test.jsonl")}
    assert all(item.weight == lengths[item.id] for item in scores.items), "the answer's tokens and its end"
    assert scores.items[0].tags.items() >= {"kind": "faq", "intent": "returns", "grounded": "no"}.items()


def test_kl_is_scipys_at_every_position_of_the_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from scipy.special import rel_entr, softmax

    models, tokenizer = (load_model(folder), build_model(seed=5)), load_tokenizer(folder)
    prompt, answer = (text_ids(tokenizer, sentence) for sentence in sentences(2))
    ids = torch.tensor([[*prompt, *answer]])
    with torch.inference_mode():
        first, second = (model(input_ids=ids).logits[0, len(prompt) - 1 :].double().numpy() for model in models)
    wanted = rel_entr(softmax(first, axis=-1), softmax(second, axis=-1)).sum(-1).mean()
    whole = mean_divergence(models, (prompt, prompt), answer, ("a", "b"))
    assert whole[0] == pytest.approx(wanted, rel=1e-5)
    assert whole[1] == pytest.approx((first.argmax(-1) == second.argmax(-1)).mean())
    monkeypatch.setattr(following, "CHUNK", 3)
    assert mean_divergence(models, (prompt, prompt), answer, ("a", "b")) == pytest.approx(whole)


def test_only_logits_of_both_are_compared(folder: Path) -> None:
    import torch

    model, padded, tokenizer = load_model(folder), load_model(folder), load_tokenizer(folder)
    padded.resize_token_embeddings(528, mean_resizing=False)
    with torch.no_grad():
        padded.model.embed_tokens.weight[512:] = 3.0
    prompt, answer = (text_ids(tokenizer, sentence) for sentence in sentences(2))
    kl, same = mean_divergence((model, padded), (prompt, prompt), answer, ("a", "b"))
    assert (kl, same) == (pytest.approx(0.0, abs=1e-6), 1.0)


def test_one_vocabulary_or_the_other_with_tokens_added() -> None:
    base = {"a": 0, "b": 1, "c": 2}
    check_vocabulary(base, dict(base), "it")
    check_vocabulary(base, base | {"d": 3}, "it")
    check_vocabulary(base | {"d": 3}, base, "it")
    for other in ({"a": 0, "b": 2, "c": 1}, {"a": 0, "b": 1, "x": 2}, {"x": 0}):
        with pytest.raises(ModelError, match="KL needs one vocabulary"):
            check_vocabulary(base, other, "it")


def test_the_same_vocabulary_may_still_split_texts_otherwise() -> None:
    first, second = build_tokenizer(), build_tokenizer()
    from tokenizers import pre_tokenizers

    second.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert common_token_ids((first, first), ["within 45 days"], "it") == [text_ids(first, "within 45 days")]
    with pytest.raises(ModelError, match="KL needs the same tokens"):
        common_token_ids((first, second), ["within 45 days"], "it")


@pytest.mark.usefixtures("here")
def test_models_that_cannot_be_compared_say_why_and_the_others_go_on(
    folder: Path, corpus: Path, tmp_path: Path
) -> None:
    import torch

    save_model(build_model(vocab_size=300), build_tokenizer(300), tmp_path / "foreign", "float32")
    talking = build_tokenizer()
    talking.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    save_model(build_model(), talking, tmp_path / "talking", "float32")
    write_gguf(folder, tmp_path / "file.gguf", "f16")
    broken = build_model()
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    save_tiny(tmp_path / "broken", broken)
    candidates = {name: tmp_path / name for name in ("foreign", "talking", "broken")} | {"file": tmp_path / "file.gguf"}
    scores, metrics = compare(tmp_path, models_of(folder, candidates, corpus), limit=3)
    failures = {name: model.failure for name, model in scores.summary.models.items() if model.failure}
    assert failures.keys() == {"foreign", "broken"}
    assert (
        "KL needs the same tokens" in failures["foreign"]
        and "candidate broken: 1 tensor with NaN" in failures["broken"]
    )
    assert all(item.values.keys() == {"tuned", "talking", "file"} for item in scores.items)
    assert 0 <= metrics["file.kl"] < 1e-4 < metrics["talking.kl"]
    notes = "\n".join(scores.summary.notes)
    assert "foreign: not compared." in notes and "talking: uses a different chat format for the prompts" in notes
    assert "file: the .gguf file's weights" in notes


@pytest.mark.usefixtures("here")
def test_a_broken_baseline_and_an_empty_test_split_are_refused(folder: Path, corpus: Path, tmp_path: Path) -> None:

    with pytest.raises(ModelError, match="baseline tuned .*NaN logits"):
        compare(tmp_path, models_of(save_tiny(tmp_path / "broken", overflowing_model()), {"copy": folder}, corpus))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "test.jsonl").touch()
    with pytest.raises(DataError, match="no rows"):
        compare(tmp_path, models_of(folder, {"copy": folder}, tmp_path / "empty"))


def test_the_baseline_s_place_is_not_in_the_question(folder: Path) -> None:
    model = inspect_model(Artifact("tuned", Kind.MODEL, folder), "baseline")
    plans = [
        DivergencePlan([], ["a"], "float32", "digest", replace(model, weights=place))
        for place in (folder, folder.parent)
    ]
    first, second = (TypeAdapter(DivergencePlan).dump_python(plan, mode="json") for plan in plans)
    assert first == second and "baseline" not in first


def test_the_baseline_speaks_for_itself_in_a_process_of_its_own(folder: Path, corpus: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", shaken(0.5))
    scores, metrics = compare(tmp_path, models_of(folder, {"other": other}, corpus), text="baseline", max_new_tokens=5)
    assert metrics["items"] == ROWS and metrics["other.kl"] > 0
    assert all(item.answers.keys() == {"tuned"} and item.answers["tuned"] for item in scores.items)


CHANGES = {
    "text": Change("baseline"),
    "max_new_tokens": Change(3, {"text": "baseline"}),
    "limit": Change(2),
    "dtype": Change("bfloat16"),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    first, second = (
        save_tiny(folder / name, build_model(seed, num_hidden_layers=1)) for name, seed in (("first", 5), ("second", 0))
    )
    with asked_here():
        inputs = models_of(first, {"other": second}, write_test(folder / "corpus", 6))
        yield Case(folder, inputs, {"limit": 3, "max_new_tokens": 2})
