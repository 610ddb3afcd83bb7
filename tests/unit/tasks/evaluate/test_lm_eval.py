"""Tiny models through the harness: item values, samples, the answer cache, refusals."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from tasks.evaluate.benchmark.run import HarnessResult, TaskResult, run_tasks
from tasks.evaluate.benchmark.samples import HarnessItem
from tasks.evaluate.lm_eval import LmEval, score_items
from tasks.shared.errors import ConfigError, DataError, ErrorList, ModelError, TechniqueError
from tasks.shared.formats.scores import Scores, read_scores
from tasks.shared.technique import Artifact, Inputs, Kind
from tests.benchmark_data import write_benchmark_data
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, empty_run, overflowing_model, save_tiny
from tests.unit.tasks.evaluate.benchmark.test_tasks import write_task

SMALL: dict[str, Any] = {"limit": 4, "batch_size": 4, "dtype": "float32"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmark_data(tmp_path_factory.mktemp("data"))


def inputs_of(baseline: Path, **candidates: Path) -> Inputs:
    return Inputs({
        "baseline": (Artifact("tuned", Kind.MODEL, baseline),),
        "candidates": tuple(Artifact(name, Kind.ENGINE if path.suffix else Kind.MODEL, path) for name, path in candidates.items()),
    })  # fmt: skip


def without_numbers(folder: Path) -> Path:
    """A model whose logits are not finite."""
    return save_tiny(folder, overflowing_model())


def values_of(scores: Scores, measure: str, model: str) -> list[float]:
    return [item.values[model] for item in scores.items if item.measure == measure]


def test_models_side_by_side_item_by_item(data: Path, tmp_path: Path) -> None:
    from tasks.shared.gguf.writer import write_gguf

    folder, other = save_tiny(tmp_path / "model"), save_tiny(tmp_path / "other", build_model(seed=5))
    write_gguf(folder, tmp_path / "model.gguf", "f16")
    (tmp_path / "torn.gguf").write_bytes((tmp_path / "model.gguf").read_bytes()[:300])
    out, run = empty_run(tmp_path, "bench")
    tasks = ("hellaswag_val1000", "xcopa_languages", "crows_pairs_en")
    figures = LmEval(tasks=tasks, data=str(data), again=1, **SMALL)(
        inputs_of(
            folder,
            copy=folder,
            other=other,
            gguf=tmp_path / "model.gguf",
            torn=tmp_path / "torn.gguf",
            broken=without_numbers(tmp_path / "bad"),
        ),  # fmt: skip
        out,
        run,
    )
    scores = read_scores(out)
    names = [f"{tasks[0]}.acc_norm", f"{tasks[1]}.acc", f"{tasks[2]}.stereotype"]
    assert list(scores.summary.measures) == names and all(
        measure.binary for measure in scores.summary.measures.values()
    )
    assert [scores.summary.measures[name].better for name in names] == ["higher", "higher", "lower"]
    models = scores.summary.models
    assert [name for name, model in models.items() if model.failure] == ["torn", "broken"]
    assert "logits" in models["broken"].failure
    assert {model.engine for model in models.values()} == {"transformers"} and models["tuned again"].role == "repeat"
    for name in names:
        assert (
            values_of(scores, name, "tuned")
            == values_of(scores, name, "copy")
            == values_of(scores, name, "tuned again")
        )
        assert values_of(scores, name, "gguf") == values_of(scores, name, "tuned"), (
            "float16 keeps the order of these choices"
        )
        assert figures[f"other.{name}"] == fmean(values_of(scores, name, "other"))
    assert {item.tags["language"] for item in scores.items if item.measure == names[1]} == {"et", "ht", "id", "it"}
    pair = next(item for item in scores.items if item.measure == names[2])
    assert pair.wanted in pair.question.split(" / ") and (pair.answers["tuned"] == pair.wanted) == bool(
        pair.values["tuned"]
    )
    assert f"{tasks[0]}.acc" in models["tuned"].figures, "the other metrics are kept beside"
    assert any(note.startswith("gguf: GGUF weights, dequantized") for note in scores.summary.notes), (
        "not of the torn one"
    )
    assert f"{tasks[1]}: 4 of 22 items, 0-shot." in scores.summary.notes


def test_the_harness_alone_gives_the_same(data: Path, tmp_path: Path) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from tasks.evaluate.benchmark.benchmarks import task_config
    from tasks.shared.model.loading import load_model, load_tokenizer

    folder = save_tiny(tmp_path / "model")
    out, run = empty_run(tmp_path)
    LmEval(tasks=("truthfulqa_best",), data=str(data), num_fewshot=1, dtype="float32")(inputs_of(folder), out, run)
    alone = simple_evaluate(
        HFLM(pretrained=load_model(folder), tokenizer=load_tokenizer(folder), batch_size=16), tasks=[task_config("truthfulqa_best", data)],
        num_fewshot=1, bootstrap_iters=0, task_manager=TaskManager(include_defaults=False),
    )  # fmt: skip
    kept = [
        json.loads(line) for line in (out / "samples" / "truthfulqa_best.tuned.jsonl").read_text("utf-8").splitlines()
    ]
    theirs = alone["samples"]["truthfulqa_best"]
    for mine, other in zip(kept, theirs, strict=True):
        assert mine["context"] == other["arguments"][0][0] and mine["doc_hash"] == other["doc_hash"]
        assert [response[0][0] for response in mine["resps"]] == pytest.approx(
            [response[0][0] for response in other["resps"]], abs=1e-4
        )
    assert fmean(mine["acc"] for mine in kept) == alone["results"]["truthfulqa_best"]["acc,none"]


def test_answers_in_words_in_the_chat_format(data: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    out, run = empty_run(tmp_path)
    LmEval(
        tasks=("ifeval_lite", "gsm8k_test"),
        data=str(data),
        apply_chat_template=True,
        num_fewshot=0,
        **SMALL | {"limit": 2},
    )(inputs_of(folder), out, run)
    scores = read_scores(out)
    assert list(scores.summary.measures) == ["ifeval_lite.strict", "gsm8k_test.exact_match"]
    assert any(note == "Prompts are rendered in a chat template: tuned ChatML." for note in scores.summary.notes)
    sample = json.loads((out / "samples" / "ifeval_lite.tuned.jsonl").read_text("utf-8").splitlines()[0])
    assert sample["context"].startswith("<|im_start|>user\nWrite") and sample["context"].endswith("assistant\n")
    assert {item.tags.get("kind") for item in scores.items if item.measure == "ifeval_lite.strict"} == {
        "punctuation",
        "length_constraints",
    }
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    again, run = empty_run(tmp_path, "again")
    LmEval(tasks=("ifeval_lite",), data=str(data), apply_chat_template=True, **SMALL)(inputs_of(folder), again, run)
    assert any("tuned its own" in note for note in read_scores(again).summary.notes)


def test_a_model_without_a_chat_template_is_asked_plainly_and_not_in_chat(data: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text("utf-8").replace("<|im_end|>", "<|done|>")
        (folder / name).write_text(text, "utf-8")
    out, run = empty_run(tmp_path)
    LmEval(tasks=("crows_pairs_en",), data=str(data), **SMALL)(inputs_of(folder), out, run)
    assert len(read_scores(out).items) == 4
    refused, run = empty_run(tmp_path, "refused")
    with pytest.raises(ModelError, match="no chat template"):
        LmEval(tasks=("crows_pairs_en",), data=str(data), apply_chat_template=True, **SMALL)(
            inputs_of(folder), refused, run
        )
    assert not list(refused.iterdir())


def test_tasks_of_the_user_s_own_with_code_groups_and_filters(tmp_path: Path) -> None:
    own = write_task(
        write_task(tmp_path / "own", "first"), "second", metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}]
    )
    (own / "group.yaml").write_text(json.dumps({"group": "both", "task": ["first", "second"]}))
    (own / "said.py").write_text("def grade(doc, results):\n    return {'length': len(results[0]), 'parts': [1, 2]}\n")
    written = {
        "task": "said", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "first.jsonl"}}, "test_split": "test",
        "output_type": "generate_until", "doc_to_text": "question", "doc_to_target": "gold", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3},
        "process_results": "GRADE",
        "metric_list": [{"metric": name, "aggregation": how, "higher_is_better": False} for name, how in (("parts", "bypass"), ("length", "mean"))],
    }  # fmt: skip
    (own / "said.yaml").write_text(json.dumps(written).replace('"GRADE"', "!function said.grade"))
    out, run = empty_run(tmp_path)
    settings = {"include": str(own), "include_code": True, "metrics": {"said": "length"}, "tags": ("gold",)}
    LmEval(tasks=("both", "said"), **settings, **SMALL)(inputs_of(save_tiny(tmp_path / "model")), out, run)
    scores = read_scores(out)
    assert list(scores.summary.measures) == ["both.acc", "said.length"]
    assert (scores.summary.measures["said.length"].binary, scores.summary.measures["said.length"].better) == (
        False,
        "lower",
    )
    of_group = [item for item in scores.items if item.measure == "both.acc"]
    assert {item.tags["task"] for item in of_group} == {"first", "second"} and len(of_group) == 8
    assert {item.tags["gold"] for item in of_group} == {"0", "1"} and of_group[0].id == "first/0"
    assert not list(own.rglob("__pycache__")), "the folder is in the key"
    refused, run = empty_run(tmp_path, "refused")
    with pytest.raises(TechniqueError, match="metric parts has no value for each item"):
        LmEval(tasks=("said",), **settings | {"metrics": {"said": "parts"}}, **SMALL)(
            inputs_of(tmp_path / "model"), refused, run
        )


def test_what_was_answered_is_not_asked_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger limit or another task evaluates only new requests; a truncated line is skipped."""
    from tasks.evaluate.benchmark import run as harness_asking
    from tasks.evaluate.benchmark.run import HarnessPlan, TaskPlan
    from tasks.evaluate.models_under_test.isolated_runs import Resources
    from tasks.evaluate.models_under_test.model_under_test import inspect_model

    asked: list[int] = []
    genuine = harness_asking.harness_model

    @contextmanager
    def counted(*arguments: Any) -> Iterator[Any]:
        with genuine(*arguments) as lm:
            plain = lm.lm.loglikelihood
            lm.lm.loglikelihood = lambda requests: asked.append(len(requests)) or plain(requests)
            yield lm

    monkeypatch.setattr(harness_asking, "harness_model", counted)
    model = inspect_model(Artifact("tuned", Kind.MODEL, save_tiny(tmp_path / "model")), "baseline")
    plan = HarnessPlan(
        tasks=(TaskPlan("crows_pairs_en", "ours", "x"),), limit=2, num_fewshot=None, batch_size=2, dtype="float32", apply_chat_template=False,
        tags=(), data=str(data), answer_cache=str(tmp_path / "answered"),
    )  # fmt: skip
    resources = Resources(tmp_path, 1, "cpu")
    first = run_tasks(model, plan, resources)
    assert run_tasks(model, plan, resources) == first and asked == [4]
    more = replace(plan, limit=3, tasks=(*plan.tasks, TaskPlan("banking77_of10", "ours", "x")))
    grown = run_tasks(model, more, resources)
    assert asked == [4, 2, 30] and grown.tasks["crows_pairs_en"].items[:2] == first.tasks["crows_pairs_en"].items
    (kept,) = (tmp_path / "answered").iterdir()
    kept.write_bytes(kept.read_bytes()[:-20])
    assert run_tasks(model, more, resources) == grown and asked == [4, 2, 30, 1]


def test_what_cannot_be_asked_is_refused_before_any_model_is_loaded(data: Path, tmp_path: Path) -> None:
    nowhere = inputs_of(tmp_path / "nowhere")
    out, run = empty_run(tmp_path)
    for settings, message in (
        ({}, "steps.step.tasks: none"),
        ({"tasks": ("gsm8k_test",)}, "steps.step.data: not set"),
        ({"tasks": ("gsm8k_test",) * 2, "data": str(data)}, "gsm8k_test twice"),
        ({"tasks": ("gsm8k_test",), "data": str(data), "metrics": {"other": "acc"}}, "no task other here"),
    ):
        with pytest.raises(ErrorList, match=message):
            LmEval(**settings)(nowhere, out, run)
    broken = write_benchmark_data(tmp_path / "broken", 2)
    (broken / "gsm8k" / "test.jsonl").write_text("{half")
    with pytest.raises(DataError, match="line 1"):
        LmEval(tasks=("gsm8k_test",), data=str(broken))(nowhere, out, run)
    own = write_task(tmp_path / "own", test_split="absent")
    with pytest.raises(ConfigError, match="mine cannot be loaded"):
        LmEval(tasks=("mine",), include=str(own))(nowhere, out, run)
    write_task(own)
    (own / "mine.jsonl").write_text("{half")
    with pytest.raises(ConfigError, match="mine cannot be loaded"):
        LmEval(tasks=("mine",), include=str(own))(nowhere, out, run)


def test_a_baseline_without_numbers_ends_it(data: Path, tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    with pytest.raises(ModelError, match=r"baseline tuned .*logits: not finite"):
        LmEval(tasks=("crows_pairs_en",), data=str(data), **SMALL)(
            inputs_of(without_numbers(tmp_path / "bad")), out, run
        )


def test_models_that_were_asked_different_items_are_not_compared() -> None:
    def result(fingerprint: str) -> HarnessResult:
        item = HarnessItem("1", "?", "yes", {"acc": 1.0}, {"": "yes"}, {}, fingerprint, {})
        return HarnessResult({"mine": TaskResult([item], {"acc": True}, 0, 1, 0)})

    assert len(list(score_items("mine.acc", "acc", "mine", {"a": result("x"), "b": result("x")}))) == 1
    with pytest.raises(DataError, match="b was evaluated on other items"):
        list(score_items("mine.acc", "acc", "mine", {"a": result("x"), "b": result("y")}))


CHANGES = {
    "tasks": Change(("banking77_of10",)),
    "include": Change(lambda case: case.more["include"]),  # another place, the same content
    "include_code": Change(False, refused="would run Python code"),
    "data": Change(lambda case: case.more["data"]),
    "limit": Change(3),
    "num_fewshot": Change(1),
    "batch_size": Change(2),  # other sums: a choice may differ; here the note does
    "dtype": Change("bfloat16"),
    "apply_chat_template": Change(True),
    "metrics": Change({"mine": "acc_norm"}),
    "tags": Change(("gold",)),
    "again": Change(1),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    own = write_task(folder / "own", metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}])
    (own / "mine.py").write_text("def ask(doc):\n    return doc['question']\n")
    (own / "mine.yaml").write_text(
        (own / "mine.yaml").read_text().replace('"doc_to_text": "question"', '"doc_to_text": !function mine.ask')
    )
    data = write_benchmark_data(folder / "data")
    copies = {name: str(shutil.copytree(folder / name, folder / "copies" / name)) for name in ("own", "data")}
    model = save_tiny(folder / "model", build_model(num_hidden_layers=1))
    settings = {
        "tasks": ("banking77_of10", "mine"),
        "data": str(data),
        "include": str(own),
        "include_code": True,
        **SMALL,
        "limit": 2,
    }
    yield Case(folder, inputs_of(model), settings, more={"include": copies["own"], "data": copies["data"]})
