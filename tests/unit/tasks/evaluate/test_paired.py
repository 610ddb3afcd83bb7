"""The whole verdict on tiny models: an equal candidate ships, a broken one does not, leaks and misfits are refused."""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.evaluate import asking, runtime
from tasks.evaluate import paired as module
from tasks.evaluate.answers import Reply, counts_for, grade
from tasks.evaluate.asking import Reading
from tasks.evaluate.comparison import Sitting, choose_shipped, compare_measure, list_flips, scores_by_kind
from tasks.evaluate.paired import Margin, Paired, power_notes, read_labels, read_test_rows
from tasks.evaluate.runtime import Cost, make_sample, peak_memory, summarise
from tasks.evaluate.subjects import Subject, folder_format, open_subject, reference_questions, tuned_questions
from tasks.quantize.rtn import RTN
from tasks.shared.articles import Article
from tasks.shared.chat import join_answer
from tasks.shared.errors import ConfigError, DataError, ModelError, TechniqueError
from tasks.shared.keys import PROJECT
from tasks.shared.rows import Message, Row, write_rows
from tasks.shared.technique import Artifact, Inputs, Kind
from tasks.shared.verdict import Comparison, Item, Spread, Verdict, read_verdict
from tests.outputs import fingerprints
from tests.settings_case import Case, Change, untimed_verdict
from tests.tiny_llama import build_model, empty_run, save_tiny

LABELS = ("returns", "warranty", "other")
ITEMS = 66


def make_row(index: int, prefix: str = "test") -> Row:
    intent, fact = (("returns", "45 days"), ("warranty", "24 months"), ("other", ""))[index % 3]
    text = f"That is {fact}." if fact else "I cannot help with that."
    return Row(
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
    article = Article(id="a1", title="Times", intent="returns", text="Returns within 45 days. Warranty 24 months.")
    (folder / "articles.jsonl").write_text(article.model_dump_json() + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


def inputs_of(baseline: Path, candidates: Mapping[str, Path], corpus: Path, reference: Path | None = None) -> Inputs:
    ports = {
        "baseline": (Artifact("tuned", Kind.MODEL, baseline),), "data": (Artifact("corpus", Kind.CORPUS, corpus),),
        "candidates": tuple(Artifact(name, Kind.MODEL, path) for name, path in candidates.items()),
    }  # fmt: skip
    return Inputs(ports | ({"reference": (Artifact("teacher", Kind.MODEL, reference),)} if reference else {}))


def gold(row: Row) -> Reply:
    return Reply(row.intent, row.answer)


def broken(row: Row) -> Reply:
    wrong = LABELS[(LABELS.index(row.intent) + 1) % len(LABELS)]
    return Reply(wrong, join_answer(wrong, "Maybe."))


def judge(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corpus: Path, makers: Mapping[str, Any], **settings: Any
) -> tuple[Verdict, Path]:
    """Run with models whose replies are given, and nothing timed."""
    folder = save_tiny(tmp_path / "model")

    def pretend(subject: Any, plan: Any, *_: Any) -> Reading:
        return Reading([makers[subject.name](question.row) for question in plan.questions], 2.0)

    spread = Spread(median=1.0, low=1.0, high=1.0)
    monkeypatch.setattr(module, "ask_once", pretend)
    monkeypatch.setattr(
        module, "measure_costs", lambda probes, *_: {probe.name: Cost("none", spread, spread, None) for probe in probes}
    )
    monkeypatch.setattr(
        module, "plan_probe", lambda subject, messages, scratch: (type("P", (), {"name": subject.name})(), "")
    )
    out, run = empty_run(tmp_path)
    candidates = {name: folder for name in makers if name != "tuned" and not name.startswith("teacher")}
    reference = folder if "teacher" in makers else None
    Paired(resamples=300, **settings)(inputs_of(folder, candidates, corpus, reference), out, run)
    return read_verdict(out / "verdict.json"), out


def test_equal_candidate_ships_and_broken_one_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corpus: Path
) -> None:
    verdict, out = judge(
        monkeypatch,
        tmp_path,
        corpus,
        {"tuned": gold, "equal": gold, "broken": broken},
        margin={"intent": 0.1, "fact": 0.1, "refusal": 0.2},
    )
    assert (verdict.decision, verdict.shipped) == ("ship", "equal")
    for measure in verdict.comparisons["equal"].measures.values():
        assert (measure.to_wrong, measure.to_right, measure.flip_rate, measure.p_mcnemar) == (0, 0, 0.0, 1.0)
        assert measure.retention == measure.retention_low == measure.retention_high == 1.0
    lost = verdict.comparisons["broken"]
    assert lost.decision == "do not ship"
    assert {name: found.to_wrong for name, found in lost.measures.items()} == {"intent": 66, "fact": 44, "refusal": 22}
    assert lost.measures["fact"].difference == -1.0
    assert len(verdict.flips) == 132
    assert {flip.candidate for flip in verdict.flips} == {"broken"}
    assert (verdict.test.intent, verdict.test.fact, verdict.test.refusal) == (66, 44, 22)
    items = [Item.model_validate_json(line) for line in (out / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(set(item.models) == {"tuned", "equal", "broken"} for item in items)
    assert all(item.models["equal"] == item.models["tuned"] for item in items)
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8"))["broken"]["fact"] == 0.0


def test_items_align_by_id() -> None:
    before = {"a": True, "b": False, "c": True}
    same = compare_measure(before, {"c": True, "b": False, "a": True}, 0.05, 0.05, 200, 0)
    assert same.flip_rate == 0.0
    with pytest.raises(TechniqueError, match="one model only"):
        compare_measure(before, {"a": True, "b": False, "d": True}, 0.05, 0.05, 200, 0)


def test_smallest_of_those_that_ship() -> None:
    ship, not_ship = Comparison(decision="ship", measures={}), Comparison(decision="do not ship", measures={})
    sizes = {"big": 9, "small": 3, "tiny": 1}
    assert choose_shipped({"big": ship, "small": ship, "tiny": not_ship}, sizes) == "small"
    assert choose_shipped({"tiny": not_ship}, sizes) is None


def test_grading() -> None:
    rows = [make_row(index) for index in range(3)]
    marks = grade(rows, [gold(row) for row in rows])
    assert marks["intent"] == {"test-0": True, "test-1": True, "test-2": True}
    assert marks["fact"] == {"test-0": True, "test-1": True}
    assert marks["refusal"] == {"test-2": True}
    assert marks["over_refusal"] == {"test-0": False, "test-1": False}
    refused = grade(rows, [Reply("other", "other\nI can't help with that.")] * 3)
    assert refused["over_refusal"] == {"test-0": True, "test-1": True}
    assert list(scores_by_kind(rows, marks)) == ["faq", "refuse"]
    declined = rows[0].model_copy(
        update={
            "messages": (
                *rows[0].messages[:-1],
                Message(role="assistant", content="returns\nWe cannot change 45 days."),
            )
        }
    )
    assert not counts_for(declined, "over_refusal")


def test_flips_tell_what_was_wanted() -> None:
    rows = [make_row(0)]
    subject = Subject("tuned", "baseline", "model", Path("weights"), "transformers", "float32")

    def sit(name: str, reply: Reply) -> Sitting:
        return Sitting(replace(subject, name=name), rows, {rows[0].id: reply}, grade(rows, [reply]), None)

    found = list_flips(rows, sit("tuned", gold(rows[0])), [sit("bad", broken(rows[0]))])
    assert [(flip.measure, flip.direction, flip.wanted, flip.candidate_answer) for flip in found] == [
        ("intent", "to_wrong", "returns", "warranty"), ("fact", "to_wrong", "That is 45 days.", "Maybe."),
    ]  # fmt: skip


def test_the_reference_is_asked_fewer_rows_with_and_without_the_article(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corpus: Path
) -> None:
    verdict, out = judge(
        monkeypatch, tmp_path, corpus, {"tuned": gold, "equal": gold, "teacher": gold, "teacher without article": broken},
        reference_limit=12,
    )  # fmt: skip
    assert verdict.reference == "teacher"
    assert {name: model.scores["intent"].n for name, model in verdict.models.items()} == {
        "tuned": ITEMS, "equal": ITEMS, "teacher": 12, "teacher without article": 12,
    }  # fmt: skip
    assert list(verdict.comparisons) == ["equal"], "a reference decides nothing"
    items = [Item.model_validate_json(line) for line in (out / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum("teacher" in item.models for item in items if item.measure == "intent") == 12


def test_a_killed_evaluation_goes_on_at_the_next_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corpus: Path
) -> None:
    folder = save_tiny(tmp_path / "model")
    subject = open_subject(Artifact("tuned", Kind.MODEL, folder), "baseline")
    _, run = empty_run(tmp_path)
    asked = []

    def count(*_: Any) -> Reading:
        asked.append(1)
        return Reading([gold(make_row(0))], 2.0)

    monkeypatch.setattr(asking, "ask", count)
    plan = asking.Plan(tuned_questions([make_row(0)]), LABELS, [], 4, 4, 64)
    first = asking.ask_once(subject, plan, run.scratch, 1, "cpu")
    assert asking.ask_once(subject, plan, run.scratch, 1, "cpu") == first and len(asked) == 1
    for number, torn in enumerate(('{"replies": [', "", "null", '{"replies": [], "perplexity": 2.0}'), start=2):
        (run.scratch / "readings" / "tuned.json").write_text(torn, encoding="utf-8")
        assert asking.ask_once(subject, plan, run.scratch, 1, "cpu") == first and len(asked) == number


CHILD = """
import json, os, signal, sys
from pathlib import Path
from tasks.evaluate import asking, paired
from tasks.shared.technique import Artifact, Inputs, Kind, StepRun
job, genuine = json.loads(sys.argv[1]), asking.ask
def ask(subject, *more):
    if subject.name == "other":
        os.kill(os.getpid(), signal.SIGKILL)
    return genuine(subject, *more)
asking.ask = ask
ports = {port: tuple(Artifact(name, Kind(kind), Path(path)) for name, kind, path in found) for port, found in job["ports"].items()}
paired.Paired(**job["settings"])(Inputs(ports), Path(job["out"]), StepRun("step", 0, Path(job["scratch"]), threads=1))
"""


def test_killed_at_the_second_model_it_asks_the_first_no_more_and_ends_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corpus: Path
) -> None:
    folder, other = save_tiny(tmp_path / "model"), save_tiny(tmp_path / "other", build_model(seed=5))
    inputs = inputs_of(folder, {"other": other}, corpus)
    settings: dict[str, Any] = {
        "max_new_tokens": 4, "perplexity_rows": 6, "speed_tokens": 4, "speed_repeats": 1, "resamples": 200, "limit": 30, "context": 256
    }  # fmt: skip
    whole, run = empty_run(tmp_path, "whole")
    Paired(**settings)(inputs, whole, run)
    cut, stopped = empty_run(tmp_path, "cut")
    ports = {port: [(item.name, item.kind, str(item.path)) for item in found] for port, found in inputs.ports.items()}
    job = {"ports": ports, "settings": settings, "out": str(cut), "scratch": str(stopped.scratch)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(job)], cwd=PROJECT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    asked, genuine = [], asking.ask
    monkeypatch.setattr(asking, "ask", lambda subject, *more: asked.append(subject.name) or genuine(subject, *more))
    Paired(**settings)(inputs, cut, stopped)
    assert asked == ["other"]
    assert fingerprints(cut) == fingerprints(whole)


def test_an_int4_folder_answers(tmp_path: Path, corpus: Path) -> None:
    source = Artifact("student", Kind.MODEL, save_tiny(tmp_path / "model"))
    out, run = empty_run(tmp_path)
    RTN()(Inputs({"model": (source,)}), out, run)
    subject = open_subject(Artifact("int4", Kind.MODEL, out), "candidate")
    assert subject.format.startswith("int4")
    rows = [make_row(index) for index in range(4)]
    reading = asking.ask(subject, asking.Plan(tuned_questions(rows), LABELS, rows, 3, 4, 64), run.scratch, 1, "cpu")
    assert len(reading.replies) == 4 and reading.perplexity is not None and reading.perplexity > 1


def test_leaks_are_refused(corpus: Path) -> None:
    assert len(read_test_rows(corpus)) == ITEMS
    assert read_labels(corpus, [make_row(0)]) == ["returns"]
    write_rows(corpus / "train.jsonl", [make_row(0, "train").model_copy(update={"group": "test-g4"})])
    with pytest.raises(DataError, match="test-4"):
        read_test_rows(corpus)
    write_rows(corpus / "test.jsonl", [make_row(0), make_row(0)])
    with pytest.raises(DataError, match="stand twice"):
        read_test_rows(corpus)


def test_reference_gets_the_article_and_no_label_protocol() -> None:
    article = Article(id="a1", title="Times", intent="returns", text="Returns within 45 days.")
    asked, bare = reference_questions([make_row(0), make_row(2)], {"a1": article}, LABELS)
    assert "45 days" in asked.answer[-1]["content"]
    assert "45 days" not in asked.choice[-1]["content"]
    assert "warranty" in asked.choice[0]["content"]
    assert bare.answer[-1]["content"] == "Question 2?"


def test_power_notes_name_measures_without_or_with_few_items() -> None:
    notes = power_notes(
        {"intent": 900, "fact": 20, "refusal": 0}, {"intent": 0.02, "fact": 0.14}, Margin().by_measure(), 0.8
    )
    assert [note.split(":")[0] for note in notes] == ["refusal", "fact"]


def test_wrong_inputs_are_refused(tmp_path: Path, corpus: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    out, run = empty_run(tmp_path)
    with pytest.raises(ConfigError, match="candidates"):
        Paired()(inputs_of(folder, {}, corpus), out, run)
    with pytest.raises(ConfigError, match="stands twice"):
        Paired()(inputs_of(folder, {"tuned": folder}, corpus), out, run)
    with pytest.raises(ModelError, match="slim"):
        Paired()(inputs_of(folder, {"slim": tmp_path / "nowhere"}, corpus), out, run)
    (tmp_path / "bad.gguf").write_bytes(b"hello world" * 10)
    with pytest.raises(ModelError, match="GGUF"):
        open_subject(Artifact("gguf", Kind.ENGINE, tmp_path / "bad.gguf"), "candidate")
    assert folder_format(folder) == "float32 safetensors"
    assert list(out.iterdir()) == []


def test_a_model_with_broken_weights_is_named(tmp_path: Path, corpus: Path) -> None:
    import torch

    model = build_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    folder, bad = save_tiny(tmp_path / "model"), save_tiny(tmp_path / "bad", model)
    out, run = empty_run(tmp_path)
    with pytest.raises(ModelError, match="candidate slim .*\n?.*loss nan"):
        Paired(max_new_tokens=2, perplexity_rows=4, limit=6)(inputs_of(folder, {"slim": bad}, corpus), out, run)


def test_speed_counts_the_tokens_after_the_first() -> None:
    sample = make_sample(first_s=0.5, last_s=1.5, tokens=11, peak=7)
    assert sample.tokens_per_second == pytest.approx(10.0)
    cost = summarise("x", [sample, make_sample(0.7, 1.2, 11, 9), make_sample(0.6, 1.1, 11, None)])
    assert (cost.first_token.median, cost.first_token.low, cost.first_token.high, cost.peak_bytes) == (0.6, 0.5, 0.7, 9)
    here = peak_memory()
    assert here is None or here > 1_000_000
    assert peak_memory(2**30) is None


def test_a_real_run_on_tiny_models(tmp_path: Path, corpus: Path) -> None:
    folder, other = save_tiny(tmp_path / "model"), save_tiny(tmp_path / "other", build_model(seed=5))
    out, run = empty_run(tmp_path)
    settings = Paired(
        max_new_tokens=4, perplexity_rows=6, speed_tokens=4, speed_repeats=1, resamples=200, limit=30, context=256,
        margin=Margin(intent=0.2, fact=0.2, refusal=0.3),
    )  # fmt: skip
    metrics = settings(inputs_of(folder, {"copy": folder, "other": other}, corpus), out, run)
    verdict = read_verdict(out / "verdict.json")
    assert (verdict.shipped, metrics["shipped"], verdict.test.items) == ("copy", "copy", 30)
    assert all(
        found.flip_rate == 0.0 and found.p_mcnemar == 1.0 for found in verdict.comparisons["copy"].measures.values()
    )
    assert verdict.models["copy"].perplexity == verdict.models["tuned"].perplexity != verdict.models["other"].perplexity
    assert verdict.models["tuned"].speed_engine == "llama.cpp (f16 GGUF)"
    assert verdict.models["tuned"].size_bytes == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert sorted(file.name for file in out.iterdir()) == ["items.jsonl", "metrics.json", "verdict.json"]


RETURNS = 334
"""The tiny tokenizer's id of "returns", which the models of random weights choose everywhere."""
CHANGES = {
    "margin.intent": Change(0.3),
    "margin.fact": Change(0.3),
    "margin.refusal": Change(0.3),
    "alpha": Change(0.2),
    "resamples": Change(300),
    "power": Change(0.9),
    "discordance": Change(0.2),
    "limit": Change(6),
    "reference_limit": Change(3, inputs="with_reference"),
    "max_new_tokens": Change(4),
    "batch_size": Change(64, {"perplexity_rows": 9}),  # other sums: the perplexity's last bits, or an answer
    "context": Change(300),  # memory
    "perplexity_rows": Change(3),
    "speed_tokens": Change(6),
    "speed_repeats": Change(2),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    """The clock is replaced by one that tells what it was asked to time, so that the settings of timing show as well."""
    corpus = write_corpus(folder / "corpus", 9)
    first, other = (build_model(seed, num_hidden_layers=1) for seed in (0, 5))
    other.model.embed_tokens.weight.data[RETURNS] *= 9  # it then chooses another label
    first, second = save_tiny(folder / "first", first), save_tiny(folder / "second", other)
    taken: Counter[Path] = Counter()  # every run has a file of its own in its scratch folder

    def clock(probe: runtime.Probe, tokens: int, threads: int, context: int) -> runtime.Sample:
        taken[probe.file] += 1
        return make_sample(1.0, 1.0 + tokens + taken[probe.file], tokens, context)

    settings = {
        "limit": 9, "reference_limit": 2, "max_new_tokens": 2, "batch_size": 4, "context": 256, "perplexity_rows": 2,
        "speed_tokens": 4, "speed_repeats": 1, "resamples": 200,
    }  # fmt: skip
    inputs, more = (inputs_of(first, {"other": second}, corpus, reference) for reference in (None, second))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "take_sample", clock)
        yield Case(folder, inputs, settings, stable=untimed_verdict, more={"with_reference": more})
