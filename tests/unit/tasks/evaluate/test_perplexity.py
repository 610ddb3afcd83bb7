"""Perplexity: every token once, tokenizer-independent bits per byte, and refusals."""

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.evaluate.divergence import Divergence
from tasks.evaluate.likelihood.logits import prompt_ids
from tasks.evaluate.likelihood.sliding import (
    DocumentLoss,
    PerplexityPlan,
    bos_ids,
    document_nats,
    first_bytes,
    score_documents,
    windows,
)
from tasks.evaluate.models_under_test import isolated_runs
from tasks.evaluate.models_under_test.isolated_runs import Resources
from tasks.evaluate.models_under_test.model_under_test import Prompt, inspect_model
from tasks.evaluate.perplexity import Perplexity, perplexity_bounds
from tasks.shared import isolation
from tasks.shared.errors import ConfigError, DataError, ModelError
from tasks.shared.formats.rows import read_rows, write_rows
from tasks.shared.formats.scores import Scores, read_scores
from tasks.shared.gguf.writer import write_gguf
from tasks.shared.items import ItemSources
from tasks.shared.model.encoding import text_ids
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.model.saving import save_model
from tasks.shared.technique import Artifact, Inputs, Kind
from tasks.shared.text.files import Document
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, build_tokenizer, empty_run, save_tiny, sentences, write_corpus

RESOURCES = Resources(Path(), 1, "cpu")


@contextmanager
def asked_here() -> Iterator[None]:
    """Evaluate models in this process; failures are reported in the same way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolated_runs, "run_isolated", lambda work, *arguments: isolation._guarded(work, arguments))
        yield


@pytest.fixture
def here() -> Iterator[None]:
    with asked_here():
        yield


def write_test(folder: Path, rows: int = 12) -> Path:
    """Write a corpus with test and train splits."""
    write_corpus(folder, rows + 3)
    made = read_rows(folder / "calibration.jsonl")
    write_rows(folder / "test.jsonl", made[:rows])
    write_rows(folder / "train.jsonl", made[rows:])
    (folder / "calibration.jsonl").unlink()
    return folder


def models_of(baseline: Path, candidates: Mapping[str, Path], corpus: Path | None = None) -> Inputs:
    ports = {
        "baseline": (Artifact("tuned", Kind.MODEL, baseline),),
        "candidates": tuple(
            Artifact(name, Kind.ENGINE if path.suffix == ".gguf" else Kind.MODEL, path)
            for name, path in candidates.items()
        ),
    }
    return Inputs(ports | ({"data": (Artifact("corpus", Kind.CORPUS, corpus),)} if corpus else {}))


def measure(folder: Path, inputs: Inputs, **options: Any) -> tuple[Scores, Any]:
    out, run = empty_run(folder, f"step{len(list(folder.iterdir()))}")
    metrics = Perplexity(**options)(inputs, out, run)
    return read_scores(out), metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return load_model(folder), load_tokenizer(folder)


def losses_in_one_pass(model: Any, ids: list[int]) -> Any:
    """torch's cross-entropy of every token but the first."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


def nats(model: Any, ids: list[int], context: int, stride: int, first: int = 1) -> float:
    return document_nats(model, [], ids, list(windows(len(ids), first, context, stride)), "it")


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_each_token_is_predicted_once_with_enough_before_it(data: st.DataObject) -> None:
    length, context = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 60))
    stride, first = data.draw(st.integers(1, context)), data.draw(st.integers(1, length))
    spans = list(windows(length, first, context, stride))
    assert [token for span in spans for token in range(span.scored, span.end)] == list(range(first, length))
    for span in spans:
        assert 0 <= span.start < span.scored and span.end - 1 - span.start <= context
        assert span.scored - span.start >= min(span.scored, context - stride)


def test_a_window_that_holds_the_document_is_a_single_pass(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ids = text_ids(tokenizer, " ".join(sentences(12)))
    wanted = float(losses_in_one_pass(model, ids).sum())
    assert nats(model, ids, len(ids), 7) == pytest.approx(wanted, rel=1e-6)
    assert nats(model, ids, len(ids) - 1, 1) == pytest.approx(wanted, rel=1e-6)  # the last token is predicted, not read


def test_a_stride_of_the_context_is_disjoint_windows(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ids, context = text_ids(tokenizer, " ".join(sentences(12))), 16
    starts = range(0, len(ids) - 1, context)
    wanted = sum(float(losses_in_one_pass(model, ids[start : start + context + 1]).sum()) for start in starts)
    found = nats(model, ids, context, context)
    assert found == pytest.approx(wanted, rel=1e-6)
    assert found != pytest.approx(nats(model, ids, context, 4), rel=1e-4), "overlap gives more to go by"


def test_only_the_answer_counts(folder: Path, loaded: tuple[Any, Any], tmp_path: Path) -> None:
    network, tokenizer = loaded
    row = read_rows(write_test(tmp_path / "corpus", 1) / "test.jsonl")[0]
    before, answer = prompt_ids(tokenizer, Prompt.of(row)), text_ids(tokenizer, row.answer)
    model = inspect_model(Artifact("m", Kind.MODEL, folder), "candidate")
    found = score_documents(model, PerplexityPlan([row.answer], [Prompt.of(row)], 512, 256, "float32"), RESOURCES)
    wanted = losses_in_one_pass(network, [*before, *answer])[len(before) - 1 :]
    assert found.losses[0].nats == pytest.approx(float(wanted.sum()), rel=1e-6)
    assert (found.losses[0].tokens, found.losses[0].skipped, found.truncated) == (len(answer), 0, 0)
    short = score_documents(
        model, PerplexityPlan([row.answer], [Prompt.of(row)], len(answer), len(answer), "float32"), RESOURCES
    )
    assert (short.truncated, short.losses[0].tokens) == (1, len(answer))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("vocabulary", [270, 512])
def test_a_uniform_model_needs_log2_of_its_vocabulary_a_token(tmp_path: Path, vocabulary: int) -> None:
    tokenizer, model = build_tokenizer(vocabulary), build_model(vocab_size=vocabulary)
    model.model.embed_tokens.weight.data.zero_()  # and with it the head
    save_model(model, tokenizer, tmp_path / "model", "float32")
    corpus = write_test(tmp_path / "corpus")
    scores, metrics = measure(tmp_path, models_of(tmp_path / "model", {}, corpus))
    answers = [row.answer for row in read_rows(corpus / "test.jsonl")]
    tokens = sum(len(text_ids(tokenizer, answer)) for answer in answers)
    size = sum(len(answer.encode()) for answer in answers)
    assert metrics["tuned.bits_per_byte"] == pytest.approx(math.log2(vocabulary) * tokens / size, rel=1e-5)
    figures = scores.summary.models["tuned"].figures
    assert figures["perplexity"].value == pytest.approx(vocabulary, rel=1e-5)
    assert figures["perplexity_per_byte"].value == pytest.approx(2 ** metrics["tuned.bits_per_byte"], rel=1e-6)
    assert figures["tokens_scored"].value == tokens


def with_opening(tokenizer: Any) -> Any:
    """The same tokenizer, with token 1 at the beginning of every text."""
    from tokenizers import processors

    pair = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        f"{pair} $A", f"{pair} $A {pair} $B", [(pair, 1)]
    )
    return tokenizer


def test_the_first_token_counts_where_the_tokenizer_opens_a_text(
    folder: Path, loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    model, tokenizer = loaded
    save_model(load_model(folder), with_opening(build_tokenizer()), tmp_path / "opening", "float32")
    text = " ".join(sentences(8))
    ids = text_ids(tokenizer, text)
    opened, bare = (
        score_documents(
            inspect_model(Artifact("m", Kind.MODEL, path), "candidate"),
            PerplexityPlan([text], [Prompt([])], 16, 16, "float32"),
            RESOURCES,
        )
        for path in (tmp_path / "opening", folder)
    )
    assert bos_ids(tokenizer) == [] and opened.bos == "<|im_start|>"
    assert (opened.losses[0].tokens, opened.losses[0].skipped) == (len(ids), 0)
    starts = range(0, len(ids), 16)
    wanted = sum(float(losses_in_one_pass(model, [1, *ids[start : start + 16]]).sum()) for start in starts)
    assert opened.losses[0].nats == pytest.approx(wanted, rel=1e-6), "every window begins with it"
    assert (bare.losses[0].tokens, bare.losses[0].skipped) == (len(ids) - 1, len(tokenizer.decode(ids[:1]).encode()))


def test_a_first_token_that_ends_within_a_character_leaves_bytes_to_score(folder: Path) -> None:
    assert [
        first_bytes(*pair)
        for pair in (("ab", "abc"), ("\ufffd", "é"), ("a\ufffd", "a€"), ("\ufffd", "\ufffdx"), ("a", ""))
    ] == [2, 1, 2, 3, 0]
    model = inspect_model(Artifact("m", Kind.MODEL, folder), "candidate")
    (loss,) = score_documents(model, PerplexityPlan(["é"], [Prompt([])], 16, 16, "float32"), RESOURCES).losses
    assert (loss.tokens, loss.skipped) == (1, 1), "two tokens, of a byte each"


@pytest.mark.usefixtures("here")
def test_plain_text_needs_no_chat_template_and_answers_do(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "chat_template.jinja").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (bare / name).read_text("utf-8").replace("<|im_end|>", "<|done|>")
        (bare / name).write_text(text, "utf-8")
    text = " ".join(sentences(4))
    model = inspect_model(Artifact("m", Kind.MODEL, bare), "candidate")
    (own,) = score_documents(model, PerplexityPlan([text], [Prompt([])], 16, 16, "float32"), RESOURCES).losses
    assert own.tokens
    with pytest.raises(ModelError, match="candidate m: no chat template"):
        score_documents(
            model, PerplexityPlan([text], [Prompt([{"role": "user", "content": "Hi"}])], 16, 16, "float32"), RESOURCES
        )


@pytest.mark.usefixtures("here")
def test_a_text_is_scored_by_pieces_and_weighted_by_bytes(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(sentences(30)) + "\n", "utf-8")
    other = save_tiny(tmp_path / "other", build_model(seed=5))
    scores, metrics = measure(
        tmp_path, models_of(folder, {"copy": folder, "other": other}), text=str(text), piece_bytes=200, context=64, stride=32, prefix="own_"
    )  # fmt: skip
    assert sum(item.weight for item in scores.items) == text.stat().st_size
    assert len(scores.items) > 5 and {item.measure for item in scores.items} == {"own_bits_per_byte"}
    assert all(item.values["copy"] == item.values["tuned"] != item.values["other"] for item in scores.items)
    mean = sum(item.values["other"] * item.weight for item in scores.items) / text.stat().st_size
    assert metrics["other.own_bits_per_byte"] == pytest.approx(mean)
    figure = scores.summary.models["other"].figures["own_perplexity"]
    assert figure.low is not None and figure.high is not None and figure.low < figure.value < figure.high
    assert any("first token is not scored" in note for note in scores.summary.notes)


def test_other_vocabularies_gguf_files_and_broken_models_stand_side_by_side(folder: Path, tmp_path: Path) -> None:
    import torch

    save_model(build_model(vocab_size=300), build_tokenizer(300), tmp_path / "small", "float32")
    write_gguf(folder, tmp_path / "file.gguf", "f16")
    broken = build_model()
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    save_tiny(tmp_path / "broken", broken)
    candidates = {"small": tmp_path / "small", "file": tmp_path / "file.gguf", "broken": tmp_path / "broken"}
    scores, metrics = measure(tmp_path, models_of(folder, candidates, write_test(tmp_path / "corpus")))
    models = scores.summary.models
    assert (
        "candidate broken: 1 tensor with NaN" in models["broken"].failure
        and str(tmp_path) not in models["broken"].failure
    )
    assert all(item.values.keys() == {"tuned", "small", "file"} for item in scores.items)
    assert metrics["file.bits_per_byte"] == pytest.approx(metrics["tuned.bits_per_byte"], rel=1e-3)
    assert (models["file"].engine, models["file"].format) == ("transformers", "GGUF F16, dequantized")
    assert any("small: tokenized differently from tuned" in note for note in scores.summary.notes)
    assert any("file: the .gguf file's weights" in note for note in scores.summary.notes)


@pytest.mark.usefixtures("here")
def test_wrong_inputs_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stride"):
        Perplexity(context=8, stride=9)
    with pytest.raises(ConfigError, match="nothing to score"):
        measure(tmp_path, models_of(folder, {}))
    assert [str(error).partition(":")[0] for error in Perplexity().plan_problems("steps.ppl", {}, {})] == ["steps.ppl"]
    assert not list(Perplexity().plan_problems("steps.ppl", {"data": ("corpus",)}, {}))
    assert Perplexity(text="no/such.txt").sources() == (Path("no/such.txt"),), "the planner looks whether it exists"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "test.jsonl").touch()
    with pytest.raises(DataError, match="no rows"):
        measure(tmp_path, models_of(folder, {}, tmp_path / "empty"))
    (tmp_path / "one.txt").write_text("a", "utf-8")
    with pytest.raises(DataError, match="single token"):
        measure(tmp_path, models_of(folder, {}), text=str(tmp_path / "one.txt"))


@pytest.mark.usefixtures("here")
def test_models_that_cannot_be_asked_are_refused(folder: Path, tmp_path: Path) -> None:
    corpus = write_test(tmp_path / "corpus")
    silent = build_tokenizer()
    silent.chat_template = "{{ raise_exception('System role not supported') }}"
    save_model(build_model(), silent, tmp_path / "silent", "float32")
    with pytest.raises(ModelError, match="baseline tuned .*chat template: it refuses"):
        measure(tmp_path, models_of(tmp_path / "silent", {}, corpus))
    save_model(build_model(), build_tokenizer(), tmp_path / "torn", "float32")
    build_model(vocab_size=300).save_pretrained(tmp_path / "torn")
    save_model(build_model(max_position_embeddings=16), build_tokenizer(), tmp_path / "short", "float32")
    scores, _ = measure(tmp_path, models_of(folder, {"torn": tmp_path / "torn", "short": tmp_path / "short"}, corpus))
    assert "no row in the embedding of 300 rows" in scores.summary.models["torn"].failure
    assert "at most 16" in scores.summary.models["short"].failure


@pytest.mark.usefixtures("here")
def test_rows_without_an_answer_are_left_out_with_a_note_and_counted_in_the_plan(folder: Path, tmp_path: Path) -> None:
    corpus = write_test(tmp_path / "corpus", 6)
    rows = read_rows(corpus / "test.jsonl")
    open_ended = [row.model_copy(update={"messages": row.before}) for row in rows[:2]]
    write_rows(corpus / "test.jsonl", [*open_ended, *rows[2:]])
    sources = ItemSources(corpus, 6, {})
    assert [found.count for found in Perplexity().count_items(sources).values()] == [4]
    assert {found.count for found in Divergence().count_items(sources).values()} == {4}
    assert {found.count for found in Divergence(text="baseline").count_items(sources).values()} == {6}
    scores, metrics = measure(tmp_path, models_of(folder, {}, corpus))
    assert metrics["items"] == 4 and any("2 of 6 test rows have no answer" in note for note in scores.summary.notes)
    write_rows(corpus / "test.jsonl", open_ended)
    with pytest.raises(DataError, match="none of 2 rows ends with an answer"):
        Divergence().count_items(ItemSources(corpus, 2, {}))


def test_the_interval_holds_the_value_and_knows_groups() -> None:
    losses = [DocumentLoss(float(number // 2 % 7) + 1, number // 2 % 5 + 1, 0) for number in range(120)]  # each twice
    alone = [Document(str(number), "text") for number in range(120)]
    pairs = [replace(document, cluster=str(number // 2)) for number, document in enumerate(alone)]
    value = math.exp(sum(loss.nats for loss in losses) / sum(loss.tokens for loss in losses))
    low, high = perplexity_bounds(alone, losses, 0)
    wide = perplexity_bounds(pairs, losses, 0)
    assert low is not None and high is not None and wide[0] is not None and wide[1] is not None
    assert wide[0] < low < value < high < wide[1], "an item that stands twice tells nothing new"
    assert perplexity_bounds(alone, losses, 0) == (low, high)
    assert perplexity_bounds(alone[:1], losses[:1], 0) == (None, None)


def own_text(case: Case) -> str:
    return str(case.folder / "text.txt")


CHANGES = {
    "text": Change(own_text),
    "piece_bytes": Change(80),
    "context": Change(6),
    "stride": Change(2),
    "limit": Change(2),
    "dtype": Change("bfloat16"),
    "prefix": Change("own_"),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    first, second = (
        save_tiny(folder / name, build_model(seed, num_hidden_layers=1)) for name, seed in (("first", 0), ("second", 5))
    )
    texts = folder / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("\n".join(sentences(9, seed=7)), "utf-8")
    (folder / "text.txt").write_text("\n".join(sentences(9)), "utf-8")
    with asked_here():
        yield Case(
            folder,
            models_of(first, {"other": second}),
            {"text": str(texts), "piece_bytes": 120, "context": 12, "stride": 4},
        )
