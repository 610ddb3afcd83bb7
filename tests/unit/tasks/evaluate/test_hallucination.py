"""Hallucination with and without the answer in the article: prompts, and what counts."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.curate.jsonl import Jsonl
from tasks.curate.support import Support
from tasks.evaluate import hallucination as module
from tasks.evaluate.grading.eval_rows import TestSplit
from tasks.evaluate.grading.replies import Reply
from tasks.evaluate.hallucination import WITH, WITHOUT, Hallucination, without_answer
from tasks.evaluate.models_under_test import groups
from tasks.evaluate.models_under_test.answering import Predictions
from tasks.evaluate.models_under_test.model_under_test import RowPrompts, inspect_model
from tasks.shared.errors import DataError
from tasks.shared.formats.articles import Article, with_article, write_articles
from tasks.shared.formats.rows import Message, Row, write_rows
from tasks.shared.formats.scores import Scores, read_scores
from tasks.shared.formats.targets import Decline
from tasks.shared.formats.tasks import write_tasks
from tasks.shared.isolation import Failure
from tasks.shared.technique import Artifact, Inputs, Kind, Upstream
from tasks.shared.text.answer_format import join_answer
from tests.settings_case import Case, Change
from tests.support_rows import TASKS, support_row
from tests.tiny_llama import build_model, empty_run, save_tiny

ARTICLE = Article(
    id="a1",
    title="Returns",
    topic="returns",
    text="Not every kettle suits. Send it back within 45 days! The refund takes 6 working days.",
)
HELD = Article(
    id="a2", title="Warranty", topic="warranty", text="We mend it. The warranty lasts 24 months.", held_out=True
)


def make_row(index: int, prefix: str = "test", grounded: bool = False, question: str = "") -> Row:
    article, fact = ((ARTICLE, "45 days"), (HELD, "24 months"))[index % 2]
    question = question or f"How long, number {index}?"
    return support_row(
        id=f"{prefix}-{index}", kind="faq", intent=article.topic, article=article.id, group=f"{prefix}-g{index}", accept=((fact,),),
        grounded=grounded,
        messages=(
            Message(role="system", content="You are the bot."),
            Message(role="user", content=with_article(question, article) if grounded else question),
            Message(role="assistant", content=join_answer(article.topic, f"That is {fact}.")),
        ),
    )  # fmt: skip


REFUSED = make_row(0).model_copy(update={"id": "no", "group": "no", "key": (Decline(),), "evidence": ""})


def write_corpus(folder: Path, rows: int = 8) -> Path:
    folder.mkdir()
    write_rows(folder / "test.jsonl", [*(make_row(index, grounded=index == 2) for index in range(rows)), REFUSED])
    write_rows(folder / "train.jsonl", [make_row(index, "train") for index in range(4)])
    write_articles(folder / "articles.jsonl", [ARTICLE, HELD])
    write_tasks(folder, TASKS)
    return folder


def inputs_of(corpus: Path, tuned: Path, **candidates: Path) -> Inputs:
    def models(found: Mapping[str, Path]) -> tuple[Artifact, ...]:
        return tuple(
            Artifact(name, Kind.ENGINE if path.suffix == ".gguf" else Kind.MODEL, path) for name, path in found.items()
        )

    return Inputs({
        "baseline": models({"tuned": tuned}), "candidates": models(candidates), "data": (Artifact("corpus", Kind.CORPUS, corpus),)
    })  # fmt: skip


def measure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, makers: Mapping[str, Callable[[RowPrompts], str]], **settings: Any
) -> Scores:
    """Run with given answers by model; a model without a maker fails."""

    def pretend(models: Any, plans: Any, *_: Any) -> dict[str, Any]:
        return {
            model.name: Predictions(
                [Reply("", join_answer("returns", makers[model.name](asked))) for asked in plans[model.name].prompts]
            )
            if model.name in makers
            else Failure("it broke")
            for model in models
        }

    monkeypatch.setattr(groups, "evaluate_each", pretend)
    folder = save_tiny(tmp_path / "model")
    out, run = empty_run(tmp_path)
    Hallucination(**settings)(inputs_of(write_corpus(tmp_path / "corpus"), folder, wild=folder, dead=folder), out, run)
    return read_scores(out)


def gold(asked: RowPrompts) -> str:
    """Answer with the fact if the prompt has it, else refuse."""
    fact = asked.row.facts[0][0]
    return f"That is {fact}." if fact in asked.answer_messages[-1]["content"] else "Sorry, I can't help with that."


def wild(_: RowPrompts) -> str:
    return "That is 99 days."


def test_a_model_that_reads_never_invents_and_one_that_guesses_always_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scores = measure(monkeypatch, tmp_path, {"tuned": gold, "wild": wild})
    assert [(item.measure, item.id) for item in scores.items] == [
        (name, f"test-{index}") for name in (WITH, WITHOUT) for index in range(8)
    ]  # fmt: skip
    assert all(item.values == {"tuned": 0.0, "wild": 1.0} for item in scores.items)
    assert scores.summary.measures[WITH].better == scores.summary.measures[WITHOUT].better == "lower"
    assert scores.summary.models["dead"].failure == "it broke" and not scores.summary.models["dead"].figures
    counts = {name: int(figure.value) for name, figure in scores.summary.models["wild"].figures.items()}
    assert counts == {
        "findings_address": 0, "findings_number": 16, "findings_contradiction": 0, "findings_unsupported": 0, "findings_remembered": 0
    }  # fmt: skip
    first, last = scores.items[0], scores.items[-1]
    assert first.answers == {"tuned": "That is 45 days.", "wild": "That is 99 days. [number: 99]"}
    assert (first.wanted, first.tags["trained"], last.tags["trained"], first.tags["grounded"]) == (
        "That is 45 days.",
        "yes",
        "no",
        "yes",
    )


def test_a_fact_told_from_memory_is_counted_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def recite(asked: RowPrompts) -> str:
        return f"That is {asked.row.facts[0][0]}."

    scores = measure(monkeypatch, tmp_path, {"tuned": recite, "wild": wild})
    assert {item.values["tuned"] for item in scores.items} == {0.0}
    assert scores.summary.models["tuned"].figures["findings_remembered"].value == 8


def test_everybody_is_asked_twice_with_an_article_in_the_last_turn(tmp_path: Path) -> None:
    technique, corpus = Hallucination(), write_corpus(tmp_path / "corpus")
    cases = technique._cases(TestSplit([make_row(0), make_row(2, grounded=True)], TASKS, {}), corpus)
    tuned = inspect_model(Artifact("tuned", Kind.MODEL, save_tiny(tmp_path / "model")), "baseline")
    for model in (tuned, replace(tuned, role="reference")):
        whole, grounded, cut, _ = (module.prompt_for(case, model).answer_messages for case in cases)
        assert whole[-1]["content"] == with_article("How long, number 0?", ARTICLE)
        assert grounded[-1]["content"] == with_article("How long, number 2?", ARTICLE), "the article stands there once"
        assert (
            "Not every kettle suits. The refund takes 6 working days." in cut[-1]["content"]
            and "45" not in cut[-1]["content"]
        )
    assert module.prompt_for(cases[0], tuned).answer_messages[0]["content"] == "You are the bot."


def test_the_answer_is_cut_out_or_the_row_is_left_out() -> None:
    cut = without_answer(make_row(0), ARTICLE)
    assert cut is not None and cut.text == "Not every kettle suits. The refund takes 6 working days."
    assert without_answer(make_row(0), ARTICLE.model_copy(update={"text": "Six weeks and three days."})) is None, (
        "it says it in other words"
    )
    assert without_answer(make_row(0), ARTICLE.model_copy(update={"title": "45 days for returns"})) is None, (
        "the title says it too"
    )
    assert without_answer(make_row(0, question="Is it 45 days?"), ARTICLE) is None, "the customer says it"


def test_rows_left_out_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "without_answer", lambda row, article: article if row.id != "test-3" else None)
    scores = measure(monkeypatch, tmp_path, {"tuned": gold, "wild": wild})
    assert scores.summary.notes == [
        f"{WITHOUT}: 1 of 8 rows left out: the fact also appears elsewhere in the prompt, or in other words."
    ]


def test_a_corpus_without_facts_or_articles_is_refused(tmp_path: Path) -> None:
    corpus, model = write_corpus(tmp_path / "corpus"), save_tiny(tmp_path / "model")
    out, run = empty_run(tmp_path)
    write_rows(corpus / "test.jsonl", [REFUSED])
    with pytest.raises(DataError, match="none of 1 rows has facts in its key"):
        Hallucination()(inputs_of(corpus, model), out, run)
    (corpus / "articles.jsonl").unlink()
    with pytest.raises(DataError, match="and an article as evidence"):
        Hallucination()(inputs_of(corpus, model), out, run)
    assert list(out.iterdir()) == []


def test_a_corpus_that_gets_no_articles_is_an_error_of_the_plan() -> None:
    def problems(corpus: Any) -> list[str]:
        upstream = {"corpus": Upstream(corpus, {})}
        return [str(found) for found in Hallucination().plan_problems("steps.facts", {"data": ("corpus",)}, upstream)]

    (found,) = problems(Jsonl(path="chats.jsonl"))
    assert "steps.facts" in found and "no articles" in found and "steps.corpus.articles=FILE" in found
    assert problems(Jsonl(path="chats.jsonl", articles="a.jsonl")) == problems(Support()) == []


def test_real_models_answer_in_both_engines(tmp_path: Path) -> None:
    from tasks.shared.gguf.writer import write_gguf

    folder, gguf = save_tiny(tmp_path / "model"), tmp_path / "model.gguf"
    write_gguf(folder, gguf, "f16")
    out, run = empty_run(tmp_path)
    figures = Hallucination(max_new_tokens=4, limit=3)(
        inputs_of(write_corpus(tmp_path / "corpus"), folder, copy=folder, gguf=gguf), out, run
    )
    scores = read_scores(out)
    assert len(scores.items) == figures["items"] == 6
    assert all(
        set(item.values) == {"tuned", "copy", "gguf"} and item.values["copy"] == item.values["tuned"]
        for item in scores.items
    )


CHANGES = {
    "limit": Change(2),
    "support": Change(0.0),
    "memory_counts": Change(True),
    "max_new_tokens": Change(9),
    "batch_size": Change(1),
    "context": Change(64),
}
TOLD = {1: "an", 4: "a", 64: "of", 256: "the"}
"""How many, in words that no rule looks at."""


def only_ids(out: Path, _: Any) -> dict[str, Any]:
    """Part of the result that does not depend on the models' answers."""
    return {"items": [(item.measure, item.id, item.wanted) for item in read_scores(out).items]}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    """Case with synthetic answers that encode the plan, since random weights trigger no rule."""
    corpus, model = write_corpus(folder / "corpus"), save_tiny(folder / "model", build_model(num_hidden_layers=1))

    def pretend(models: Any, plans: Any, *_: Any) -> dict[str, Any]:
        results = {}
        for model in models:
            plan = plans[model.name]
            facts = [
                asked.row.facts[0][0] if asked.row.id < "test-4" else "wizards polish dragons" for asked in plan.prompts
            ]
            asked = f"{TOLD[plan.batch_size]} {TOLD[plan.context]}" + " so" * plan.max_new_tokens
            results[model.name] = Predictions([Reply("", join_answer("returns", f"{fact} {asked}")) for fact in facts])
        return results

    settings = {"limit": 8, "max_new_tokens": 2, "batch_size": 4, "context": 256}

    def reply(*given: Any, **more: Any) -> Any:
        """Answer as `pretend` does, without a change that other techniques would see."""
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(groups, "evaluate_each", pretend)
            return groups.reply_to_all(*given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "reply_to_all", reply)
        yield Case(folder, inputs_of(corpus, model, other=model), settings, stable=only_ids)
