"""Graded answers of tiny models: prompts by role, item values, and refusals."""

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.evaluate.generation import Generation
from tasks.evaluate.grading.eval_rows import last_question, read_test_rows, read_test_split
from tasks.evaluate.grading.measures import items_by_measure
from tasks.evaluate.grading.replies import Reply
from tasks.evaluate.models_under_test import groups, isolated_runs
from tasks.evaluate.models_under_test.answering import (
    GenerationPlan,
    Predictions,
    generate_replies,
    has_template,
    template_notes,
)
from tasks.evaluate.models_under_test.isolated_runs import Resources
from tasks.evaluate.models_under_test.model_under_test import (
    folder_format,
    inspect_model,
    reference_prompts,
    tuned_prompts,
)
from tasks.quantize.rtn import RTN
from tasks.shared.errors import ConfigError, DataError, ModelError
from tasks.shared.formats.articles import Article, with_article
from tasks.shared.formats.rows import Message, Row, ToolCall, write_rows
from tasks.shared.formats.scores import Scores, read_scores
from tasks.shared.formats.targets import Label, Number
from tasks.shared.formats.tasks import Task, write_tasks
from tasks.shared.isolation import Failure
from tasks.shared.model.saving import save_model
from tasks.shared.technique import Artifact, Inputs, Kind
from tasks.shared.text.answer_format import join_answer
from tests.forked import ForkedCode
from tests.outputs import fingerprints
from tests.settings_case import Case, Change
from tests.support_rows import TASKS, support_row
from tests.tiny_llama import build_model, build_tokenizer, empty_run, overflowing_model, save_tiny

LABELS = ("returns", "warranty", "other")
TASKS_WITH_LABELS = {
    name: task.model_copy(update={"labels": LABELS, "instruction": "Answer from the article."})
    for name, task in TASKS.items()
}
ITEMS = 66
SMALL: dict[str, Any] = {"max_new_tokens": 4, "limit": 12, "context": 256}


def make_row(index: int, prefix: str = "test") -> Row:
    intent, fact = (("returns", "45 days"), ("warranty", "24 months"), ("other", ""))[index % 3]
    text = f"That is {fact}." if fact else "I cannot help with that."
    return support_row(
        id=f"{prefix}-{index}", kind="faq" if fact else "refuse", intent=intent, article="a1" if fact else "", group=f"{prefix}-g{index}",
        accept=((fact,),) if fact else (),
        messages=(
            Message(role="system", content="You are the bot."), Message(role="user", content=f"Question {index}?"),
            Message(role="assistant", content=join_answer(intent, text)),
        ),
    )  # fmt: skip


def write_corpus(folder: Path, items: int = ITEMS) -> Path:
    folder.mkdir()
    write_rows(folder / "test.jsonl", [make_row(index) for index in range(items)])
    write_rows(folder / "train.jsonl", [make_row(index, "train") for index in range(6)])
    write_tasks(folder, TASKS)
    article = Article(id="a1", title="Times", topic="returns", text="Returns within 45 days. Warranty 24 months.")
    (folder / "articles.jsonl").write_text(article.model_dump_json() + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


def kind_of(path: Path) -> Kind:
    return Kind.ENGINE if path.suffix == ".gguf" else Kind.MODEL


def inputs_of(baseline: Path, candidates: Mapping[str, Path], corpus: Path, reference: Path | None = None) -> Inputs:
    ports = {
        "baseline": (Artifact("tuned", kind_of(baseline), baseline),), "data": (Artifact("corpus", Kind.CORPUS, corpus),),
        "candidates": tuple(Artifact(name, kind_of(path), path) for name, path in candidates.items()),
    }  # fmt: skip
    return Inputs(ports | ({"reference": (Artifact("teacher", Kind.MODEL, reference),)} if reference else {}))


def gold(row: Row) -> Reply:
    return Reply(row.label, row.answer)


def broken(row: Row) -> Reply:
    wrong = LABELS[(LABELS.index(row.label) + 1) % len(LABELS)]
    return Reply(wrong, join_answer(wrong, "Maybe."))


def plain(row: Row) -> Reply:
    return Reply(row.label, row.answer.partition("\n")[2], labeled=False)


def measure(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    corpus: Path,
    makers: Mapping[str, Callable[[Row], Reply]],
    **settings: Any,
) -> Scores:
    """Run with given replies by model; a model without a maker fails."""
    folder = save_tiny(tmp_path / "model")

    def pretend(models: Any, plans: Any, *_: Any) -> dict[str, Any]:
        return {
            model.name: Predictions([makers[model.name](question.row) for question in plans[model.name].prompts])
            if model.name in makers
            else Failure("it broke")
            for model in models
        }

    monkeypatch.setattr(groups, "evaluate_each", pretend)
    candidates = {name: folder for name in ("equal", "broken", "dead")}
    out, run = empty_run(tmp_path)
    Generation(**settings)(inputs_of(folder, candidates, corpus, folder if "teacher" in makers else None), out, run)
    return read_scores(out)


def by_measure(scores: Scores, name: str) -> dict[str, list[float]]:
    """Return one model's values by measure."""
    found: dict[str, list[float]] = {}
    for item in scores.items:
        if name in item.values:
            found.setdefault(item.measure, []).append(item.values[name])
    return found


def test_values_answers_and_failures_stand_by_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corpus: Path
) -> None:
    scores = measure(monkeypatch, tmp_path, corpus, {"tuned": gold, "equal": gold, "broken": broken})
    counts = {name: len(values) for name, values in by_measure(scores, "tuned").items()}
    assert counts == {
        "label": 66, "fact": 44, "refusal": 22, "over_refusal": 44, "format": 66, "loop": 66, "exact": 66, "rouge_l": 66
    }  # fmt: skip
    right, wrong = by_measure(scores, "tuned"), by_measure(scores, "broken")
    assert by_measure(scores, "equal") == right
    assert {name for name, values in right.items() if set(values) == {1.0}} == {
        "label",
        "fact",
        "refusal",
        "format",
        "exact",
        "rouge_l",
    }
    assert {name for name, values in wrong.items() if set(values) == {0.0}} >= {"label", "fact", "refusal", "exact"}
    assert scores.summary.models["dead"].failure == "it broke" and not by_measure(scores, "dead")
    item = next(item for item in scores.items if item.measure == "fact")
    assert (item.question, item.wanted, item.answers["broken"]) == ("Question 0?", "That is 45 days.", "Maybe.")
    assert item.tags == {"kind": "faq", "intent": "returns", "frequency": "head", "length": "short", "grounded": "no"}


def test_the_reference_is_asked_fewer_rows_with_and_without_the_article(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corpus: Path
) -> None:
    makers = {"tuned": gold, "equal": gold, "teacher": plain, "teacher without article": plain}
    scores = measure(monkeypatch, tmp_path, corpus, makers, reference_limit=12)
    counts = {name: len(by_measure(scores, name)["label"]) for name in makers}
    assert counts == {"tuned": ITEMS, "equal": ITEMS, "teacher": 12, "teacher without article": 12}
    assert "format" not in by_measure(scores, "teacher"), "it was not asked for a label line"
    assert sum("without the layout" in note for note in scores.summary.notes) == 2


def test_a_measure_that_no_row_can_have_is_refused_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corpus: Path
) -> None:
    write_rows(corpus / "test.jsonl", [make_row(0), make_row(1)])
    scores = measure(monkeypatch, tmp_path, corpus, {"tuned": gold}, measures=("intent", "fact"))
    assert list(scores.summary.measures) == ["label", "fact"], "the earlier name of label accuracy is still read"
    monkeypatch.setattr(groups, "evaluate_each", None)
    out, run = empty_run(tmp_path, "other")
    inputs = inputs_of(tmp_path / "model", {}, corpus)
    with pytest.raises(
        DataError, match=r"(?s)no row for refusal.*targets facts, label.*wanted: measures that rows have: label,"
    ):
        Generation(measures=("fact", "refusal"))(inputs, out, run)
    assert "refusal" not in items_by_measure(read_test_split(corpus).items(read_test_rows(corpus)), ())


ROUNDS = {"margins": {"label": 0.2, "fact": 0.2}, "size": 8, "slice_tags": ("kind",), "slice_items": 5}


def test_models_are_asked_in_rounds_until_they_are_decided(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corpus: Path
) -> None:
    makers = {"tuned": gold, "equal": gold, "broken": broken, "teacher": plain, "teacher without article": plain}
    scores = measure(monkeypatch, tmp_path, corpus, makers, rounds=ROUNDS, reference_limit=4)
    asking = scores.summary.asking
    assert asking is not None and asking.available == ITEMS
    assert asking.counts["broken"] == 8 < asking.counts["equal"] == asking.counts["tuned"] < ITEMS
    assert asking.counts["teacher"] == 4 and scores.summary.models["dead"].failure == "it broke"
    assert len(asking.rows) == asking.counts["tuned"]
    labels = [item for item in scores.items if item.measure == "label"]
    assert [item.id for item in labels] == list(asking.rows), "items are in the order of asking"
    assert list(asking.rows)[:8] != [f"test-{index}" for index in range(8)]
    assert [item.id for item in labels if "broken" in item.values] == list(asking.rows)[:8]
    kinds = [item.tags["kind"] for item in scores.items if item.measure == "label" and "equal" in item.values]
    assert kinds.count("refuse") >= 5


@pytest.mark.parametrize("name", ["facts", "nonsense"])
def test_an_unknown_measure_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValidationError, match=f"no measure '{name}'; there are label"):
        Generation(measures=(name,))


def turns(text: str, answer: str) -> tuple[Message, ...]:
    return Message(role="user", content=text), Message(role="assistant", content=answer)


def two_tasks(folder: Path) -> Path:
    """Write a corpus of a classification with the label alone, and of problems with a number."""
    write_corpus(folder, 6)
    sums = [
        Row(
            id=f"sum{index}",
            task="sums",
            group=f"sum{index}",
            key=(Number(value=index),),
            messages=turns(f"0 + {index}?", f"#### {index}"),
        )
        for index in range(4)
    ]
    topics = [
        Row(
            id=f"topic{index}",
            task="topics",
            group=f"topic{index}",
            key=(Label(label=name),),
            messages=turns(f"About {index}?", name),
        )
        for index, name in enumerate(["tea", "tea", "tea", "coffee"])
    ]
    write_rows(folder / "test.jsonl", [*sums, *topics])
    tasks = {"sums": Task(type="reasoning", stop=("STOP",)), "topics": Task(type="classification", layout="alone")}
    write_tasks(folder, tasks)
    return folder


def test_each_row_is_graded_by_its_own_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    corpus = two_tasks(tmp_path / "corpus")
    plans: list[GenerationPlan] = []

    def reply(row: Row) -> Reply:
        return Reply("tea" if row.task == "topics" else "", row.answer)

    def pretend(models: Any, found: Any, *_: Any) -> dict[str, Any]:
        plans.append(found["tuned"])
        return {
            model.name: Predictions([reply(prompt.row) for prompt in found[model.name].prompts]) for model in models
        }

    monkeypatch.setattr(groups, "evaluate_each", pretend)
    out, run = empty_run(tmp_path)
    figures = Generation()(inputs_of(save_tiny(tmp_path / "model"), {}, corpus), out, run)
    scores = read_scores(out)
    assert {name: len(values) for name, values in by_measure(scores, "tuned").items()} == {
        "label": 4, "label_balanced": 4, "format": 8, "loop": 4, "value": 4, "words": 4
    }  # fmt: skip
    assert (figures["tuned.label"], figures["tuned.label_balanced"], figures["tuned.value"]) == (0.75, 0.5, 1.0)
    assert {item.tags["task"] for item in scores.items} == {"sums", "topics"}
    asked = {plan.prompts[0].row.task: (plan.labels, plan.max_new_tokens, plan.stop, plan.layout) for plan in plans}
    assert asked == {"sums": ((), 256, ("STOP",), "alone"), "topics": (("coffee", "tea"), 32, (), "alone")}


def test_a_model_that_fails_on_one_task_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def pretend(models: Any, found: Any, *_: Any) -> dict[str, Any]:
        task = found["tuned"].prompts[0].row.task
        asked.extend((task, model.name) for model in models)
        return {
            model.name: Failure("too long")
            if model.name == "other"
            else Predictions([Reply("tea", "") for _ in found[model.name].prompts])
            for model in models
        }

    monkeypatch.setattr(groups, "evaluate_each", pretend)
    folder = save_tiny(tmp_path / "model")
    out, run = empty_run(tmp_path)
    Generation()(inputs_of(folder, {"other": folder}, two_tasks(tmp_path / "corpus")), out, run)
    scores = read_scores(out)
    assert scores.summary.models["other"].failure == "too long" and not by_measure(scores, "other")
    assert asked == [("sums", "tuned"), ("sums", "other"), ("topics", "tuned")]


def test_rows_without_an_answer_and_with_tools_are_put_to_the_models() -> None:
    row = Row(
        id="a", group="a", tools='[{"type": "function", "function": {"name": "f"}}]',
        messages=(
            Message(role="user", content="Rain?"), Message(role="assistant", tool_calls=(ToolCall(name="f"),)),
            Message(role="tool", content="Yes."), Message(role="user", content="And snow?"),
        ),
    )  # fmt: skip
    (asked,), (reference,) = tuned_prompts([row]), reference_prompts([row], {}, {"chat": Task()})
    assert [turn["role"] for turn in asked.answer_messages] == ["user", "assistant", "tool", "user"]
    assert asked.tools == reference.tools == row.tools
    assert reference.answer_messages == asked.answer_messages, "a chat needs no instruction"
    assert last_question(row.with_answer(Message(role="assistant", content="No."))) == last_question(row) == "And snow?"


CHILD = """
import json, os, signal, sys
from pathlib import Path
from tasks.evaluate import generation
from tasks.evaluate.models_under_test import groups, isolated_runs
from tasks.shared.technique import Artifact, Compute, Inputs, Kind, StepRun
job, genuine = json.loads(sys.argv[1]), isolated_runs.run_isolated
def run_isolated(work, model, *more):
    if model.name == "other":
        os.kill(os.getpid(), signal.SIGKILL)
    return genuine(work, model, *more)
isolated_runs.run_isolated = run_isolated
if __name__ == "__main__":
    ports = {port: tuple(Artifact(name, Kind(kind), Path(path)) for name, kind, path in found) for port, found in job["ports"].items()}
    run = StepRun("step", 0, Path(job["scratch"]), prediction_cache=Path(job["cache"]), compute=Compute(threads=1))
    generation.Generation(**job["settings"])(Inputs(ports), Path(job["out"]), run)
"""


def test_killed_at_the_second_model_it_asks_the_first_no_more_and_ends_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corpus: Path
) -> None:
    folder, other = save_tiny(tmp_path / "model"), save_tiny(tmp_path / "other", build_model(seed=5))
    inputs, cache = inputs_of(folder, {"other": other}, corpus), tmp_path / "cache"
    whole, run = empty_run(tmp_path, "whole")
    Generation(**SMALL)(inputs, whole, replace(run, step="step"))
    cut, stopped = empty_run(tmp_path, "cut")
    ports = {port: [(item.name, item.kind, str(item.path)) for item in found] for port, found in inputs.ports.items()}
    job = {"ports": ports, "settings": SMALL, "out": str(cut), "scratch": str(stopped.scratch), "cache": str(cache)}
    child = ForkedCode(CHILD, json.dumps(job))
    _, complaint = child.communicate()
    assert child.returncode == -signal.SIGKILL, complaint
    assert len(list(cache.glob("*.json"))) == 1
    asked, genuine = [], isolated_runs.run_isolated
    monkeypatch.setattr(
        isolated_runs,
        "run_isolated",
        lambda work, model, *more: asked.append(model.name) or genuine(work, model, *more),
    )
    _, later = empty_run(tmp_path, "later")  # another run of the same code: the cache is shared, scratch is not
    Generation(**SMALL)(inputs, cut, replace(later, step="step", prediction_cache=cache))
    assert asked == ["other"]
    assert fingerprints(cut) == fingerprints(whole)
    for torn in ('{"replies": [', "", "null"):
        for file in cache.glob("*.json"):
            file.write_text(torn, encoding="utf-8")
        asked.clear()
        again, _ = empty_run(tmp_path, f"torn{len(torn)}")
        Generation(**SMALL)(inputs, again, replace(later, step="step", prediction_cache=cache))
        assert asked == ["tuned", "other"], "a truncated result is not used"
        assert fingerprints(again) == fingerprints(whole)


def test_models_of_other_formats_and_engines_answer_side_by_side_and_a_broken_one_fails_alone(
    tmp_path: Path, corpus: Path
) -> None:
    import torch

    from tasks.shared.gguf.writer import write_gguf

    folder = save_tiny(tmp_path / "model")
    int4, run = empty_run(tmp_path, "int4")
    RTN()(Inputs({"model": (Artifact("student", Kind.MODEL, folder),)}), int4, run)
    model = build_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    bad, gguf, bad_gguf = save_tiny(tmp_path / "bad", model), tmp_path / "model.gguf", tmp_path / "bad.gguf"
    write_gguf(folder, gguf, "f16")
    write_gguf(bad, bad_gguf, "f16")
    out, run = empty_run(tmp_path)
    foreign = tmp_path / "foreign"
    save_model(build_model(vocab_size=400), build_tokenizer(400), foreign, "float32")
    candidates = {"copy": folder, "int4": int4, "slim": bad, "gguf": gguf, "bad gguf": bad_gguf, "foreign": foreign}
    figures = Generation(**SMALL, again=1)(inputs_of(folder, candidates, corpus), out, run)
    scores = read_scores(out)
    found = scores.summary.models
    assert (found["int4"].format.split()[0], found["gguf"].engine, found["tuned again"].role) == (
        "int4",
        "llama.cpp",
        "repeat",
    )
    assert [name for name, model in found.items() if model.failure] == ["slim", "bad gguf"]
    assert "NaN" in found["slim"].failure and str(tmp_path) not in found["slim"].failure
    assert "broken" in found["bad gguf"].failure
    for item in scores.items:
        assert set(item.values) == {"tuned", "copy", "int4", "gguf", "foreign", "tuned again"}
        assert (item.values["copy"], item.answers["copy"]) == (item.values["tuned"], item.answers["tuned"])
    assert figures["items"] == 12 and figures["copy.label"] == figures["tuned.label"]
    assert not any(name.startswith(("slim", "tuned again")) for name in figures)
    assert any("llama.cpp" in note for note in scores.summary.notes)


def test_nothing_is_compared_with_a_broken_baseline(tmp_path: Path, corpus: Path) -> None:

    out, run = empty_run(tmp_path)
    with pytest.raises(ModelError, match=r"baseline tuned .*logits: not finite"):
        Generation(**SMALL)(inputs_of(save_tiny(tmp_path / "bad", overflowing_model()), {}, corpus), out, run)
    assert list(out.iterdir()) == []


def test_each_model_is_asked_in_its_own_template_and_one_without_fails(tmp_path: Path) -> None:
    rows = tuned_prompts([make_row(0)])
    folder = save_tiny(tmp_path / "model")
    plan = GenerationPlan(rows, [], True, 3, 4, 256)
    model = inspect_model(Artifact("tuned", Kind.MODEL, folder), "candidate")
    resources = Resources(tmp_path, 1, "cpu")
    assert has_template(folder) and template_notes([model]) == []
    (before,) = generate_replies(model, plan, resources).replies
    file = folder / "chat_template.jinja"
    file.write_text("{% for message in messages %}{{ message.content }} {% endfor %}", encoding="utf-8")
    (other,) = generate_replies(model, plan, resources).replies
    assert before.output != other.output
    file.unlink()
    assert template_notes([model]) == ["tuned has no chat template and is prompted in ChatML."]
    assert generate_replies(model, plan, resources).replies == [before], "the tiny models' own template is ChatML"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text(encoding="utf-8").replace("<|im_end|>", "<|done|>")
        (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match="no chat template"):
        generate_replies(model, plan, resources)


def test_llama_takes_chatml_for_a_file_without_a_template_and_that_is_told(tmp_path: Path) -> None:
    from tasks.shared.gguf.writer import write_gguf

    whole, bare = tmp_path / "whole.gguf", tmp_path / "bare.gguf"
    write_gguf(save_tiny(tmp_path / "model"), whole, "f16")
    bare.write_bytes(whole.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_leftover"))
    models = [inspect_model(Artifact(file.stem, Kind.ENGINE, file), "candidate") for file in (whole, bare)]
    assert template_notes(models) == ["bare has no chat template and is prompted in ChatML."]
    plan = GenerationPlan(tuned_prompts([make_row(0)]), [], True, 3, 4, 256)
    told = [generate_replies(model, plan, Resources(tmp_path, 1, "cpu")).replies for model in models]
    assert told[0] == told[1], "the tiny models' own template is ChatML"


def test_reference_gets_the_article_and_no_label_protocol() -> None:
    article = Article(id="a1", title="Times", topic="returns", text="Returns within 45 days.")
    asked, bare = reference_prompts([make_row(0), make_row(2)], {"a1": article}, TASKS_WITH_LABELS)
    assert "45 days" in asked.answer_messages[-1]["content"]
    assert "45 days" not in asked.label_messages[-1]["content"]
    assert "warranty" in asked.label_messages[0]["content"]
    assert bare.answer_messages[-1]["content"] == "Question 2?"
    assert bare.answer_messages[0]["content"] == "Answer from the article.", "instead of the row's own"
    row = make_row(0)
    passages = with_article(row.prompt[-1]["content"], article.model_copy(update={"text": "No returns."}), article)
    shown = row.model_copy(
        update={"messages": (*row.messages[:-2], Message(role="user", content=passages), row.messages[-1])}
    )
    (kept,), (closed,) = (
        reference_prompts([shown], {"a1": article}, TASKS_WITH_LABELS, closed) for closed in (False, True)
    )
    assert kept.answer_messages[-1]["content"] == passages, "the row's own, distractors and all"
    assert closed.answer_messages[-1]["content"] == row.prompt[-1]["content"] == kept.label_messages[-1]["content"]
    (own,) = reference_prompts([make_row(0)], {}, TASKS)
    assert own.answer_messages[0]["content"] == "You are the bot.", "without an instruction, the row's own stays"


def test_wrong_inputs_are_refused(tmp_path: Path, corpus: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    out, run = empty_run(tmp_path)
    with pytest.raises(ConfigError, match="given more than once"):
        Generation()(inputs_of(folder, {"tuned": folder}, corpus), out, run)
    with pytest.raises(ModelError, match="slim"):
        Generation()(inputs_of(folder, {"slim": tmp_path / "nowhere"}, corpus), out, run)
    (tmp_path / "bad.gguf").write_bytes(b"hello world" * 10)
    with pytest.raises(ModelError, match="GGUF"):
        inspect_model(Artifact("gguf", Kind.ENGINE, tmp_path / "bad.gguf"), "candidate")
    assert folder_format(folder) == "float32 safetensors"
    write_rows(corpus / "test.jsonl", [])
    with pytest.raises(DataError, match="no rows"):
        Generation()(inputs_of(folder, {}, corpus), out, run)
    write_rows(corpus / "test.jsonl", [make_row(4)])
    write_rows(corpus / "train.jsonl", [make_row(0, "train").model_copy(update={"group": "test-g4"})])
    with pytest.raises(DataError, match="test-4"):
        Generation()(inputs_of(folder, {}, corpus), out, run)
    assert list(out.iterdir()) == []


EARLY = {"rounds.margins": {"format": 0.5}, "rounds.size": 1, "rounds.slice_items": 0}
"""Both models are never well-formed: without a flip, the evidence doubles with every row."""

CHANGES = {
    "measures": Change(("label", "loop")),
    "limit": Change(6),
    "reference_limit": Change(3, inputs="with_reference"),
    "max_new_tokens": Change(4),
    "stop": Change(tuple("abcdefghijklmnopqrstuvwxyz ")),
    "label": Change("written"),
    "reuse": Change(False),  # equal answers; the notes say how prompts were read
    "batch_size": Change(
        2, {"again": 1}
    ),  # other sums: an answer or a choice may differ; here the note on repeats does
    "context": Change(64, inputs="engine", refused="baseline tuned"),
    "again": Change(1),
    "rounds.margins": Change({"format": 0.5}),
    "rounds.alpha": Change(0.4, EARLY),
    "rounds.discordance": Change(0.9, EARLY | {"rounds.alpha": 1 / 12}),
    "rounds.familywise": Change(True, EARLY | {"rounds.alpha": 0.4}, inputs="two"),
    "rounds.size": Change(5, EARLY),
    "rounds.slice_tags": Change((), EARLY | {"rounds.slice_items": 6}),
    "rounds.slice_items": Change(6, EARLY),
    "rounds.after": Change("no-earlier-scores", EARLY, refused="no-earlier-scores.*no such file"),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    """Case with random weights, plus a reference and a GGUF model for the settings they need."""
    from tasks.shared.gguf.writer import write_gguf

    corpus = write_corpus(folder / "corpus", 9)
    first, second = (
        save_tiny(folder / name, build_model(seed, num_hidden_layers=1)) for name, seed in (("first", 0), ("second", 5))
    )
    write_gguf(first, folder / "first.gguf", "f16")
    long = make_row(0)
    asked = Message(
        role="user", content="How many days for returns of a kettle? " * 20
    )  # 300 tokens: more than the smallest context
    rows = [
        long.model_copy(update={"messages": (asked, long.messages[-1])}),
        *(make_row(index) for index in range(1, 9)),
    ]
    write_rows(corpus / "test.jsonl", rows)
    settings = {"limit": 9, "reference_limit": 2, "max_new_tokens": 2, "batch_size": 4, "context": 512}
    inputs, more = (inputs_of(first, {"other": second}, corpus, reference) for reference in (None, second))
    engine = inputs_of(folder / "first.gguf", {}, corpus)
    two = inputs_of(first, {"other": second, "same": first}, corpus)
    yield Case(folder, inputs, settings, more={"with_reference": more, "engine": engine, "two": two})
