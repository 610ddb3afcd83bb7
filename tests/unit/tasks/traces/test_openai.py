import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tasks.shared.engines import openai_endpoint
from tasks.shared.engines.embedded_server import Embedded
from tasks.shared.engines.sample_store import SampleStore, answer_file
from tasks.shared.errors import ConfigError, DataError, EndpointError, ModelError
from tasks.shared.formats.articles import Article, write_articles
from tasks.shared.formats.earlier_rows import EARLIER_TASK
from tasks.shared.formats.rows import Message, Row, read_rows, write_rows
from tasks.shared.formats.targets import Decline, Label
from tasks.shared.formats.tasks import Task, write_tasks
from tasks.shared.store.keys import Digests
from tasks.shared.technique import Artifact, Compute, Inputs, Kind, StepRun
from tasks.traces.budget import Prices
from tasks.traces.defaults import SENTENCE
from tasks.traces.filter import Evidence
from tasks.traces.openai import OpenAI
from tasks.traces.prompt import choose_examples, choose_refusals, teacher_messages
from tasks.traces.reasoning import Reasoning, judge_reasoning
from tests.settings_case import Case, Change, untimed_traces
from tests.support_rows import support_row

SUPPORT_TASK = Task(type="qa", layout="first_line")
SYSTEM = "You are the shop's bot."
KEY = "sk-very-secret-0123456789"


def make_row(number: int, kind: str = "faq", grounded: bool = False) -> Row:
    refuse = kind == "refuse"
    gold = (
        f"codes{number}\nSorry, I can't share codes."
        if refuse
        else f"topic{number}\nItem {number} ships in {number + 20} days."
    )
    messages = (("system", SYSTEM), ("user", f"question {number}?"), ("assistant", gold))
    return support_row(
        id=f"row-{number}",
        kind=kind,
        intent=gold.partition("\n")[0],
        article="" if refuse else f"article-{number}",
        group=f"g{number}",
        accept=() if refuse else ((f"{number + 20} days",),),
        grounded=grounded,
        messages=tuple(Message(role=role, content=content) for role, content in messages),
    )


ROWS = [make_row(number, "refuse" if number % 5 == 4 else "faq") for number in range(12)]


def write_corpus(folder: Path, more: str = "") -> Path:
    folder.mkdir()
    write_rows(folder / "train.jsonl", ROWS)
    write_tasks(folder, {EARLIER_TASK: SUPPORT_TASK})
    texts = {number: f"Item {number} ships in {number + 20} days.{more}" for number in range(12)}
    write_articles(
        folder / "articles.jsonl",
        [Article(id=f"article-{n}", title=f"Item {n}", topic=f"topic{n}", text=text) for n, text in texts.items()],
    )
    return folder


@pytest.fixture
def corpus(tmp_path) -> Path:
    return write_corpus(tmp_path / "corpus")


class Teacher(ThreadingHTTPServer):
    """Answers with `reply(messages, count)`: a text, a message, or a status to fail with."""

    daemon_threads = True

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.seen, self.lock = reply, [], threading.Lock()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *failure):
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(body)
            reply = self.server.reply(body["messages"], len(self.server.seen))
        message = reply if isinstance(reply, dict) else {"content": reply}
        choice = {"message": message, "finish_reason": "stop"}
        content = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 10}}).encode()
        self.send_response(reply if isinstance(reply, int) else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *ignored):
        pass


def right(messages, _=0):
    """What a good teacher says: the last user turn's article sentence, or a refusal."""
    last = messages[-1]["content"]
    return next((line for line in last.splitlines() if " ships in " in line), "Sorry, I can't share codes.")


def trace(corpus: Path, url: str, tmp_path: Path, name: str = "out", **settings):
    out = tmp_path / name
    out.mkdir()
    inputs = Inputs({"prompts": (Artifact("corpus", Kind.CORPUS, corpus),)})
    run = StepRun(step="traces", seed=3, scratch=tmp_path / "scratch")
    metrics = OpenAI(base_url=url, model="teacher", concurrency=2, **settings)(inputs, out, run)
    return (
        metrics,
        read_rows(out / "train.jsonl"),
        json.loads((out / "card.json").read_text()),
        json.loads((out / "usage.json").read_text()),
    )


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(openai_endpoint, "_backoff", lambda state: 0.01)


def test_teacher_and_gold_rows_by_the_set_ratio(corpus, tmp_path):
    with Teacher(right) as teacher:
        metrics, rows, card, usage = trace(
            corpus, teacher.url, tmp_path, gold_ratio=0.25, prices=Prices(input=2.0, output=10.0)
        )
    assert [row.id for row in rows] == [row.id for row in ROWS]
    assert (card["teacher"], card["gold"]) == (9, 3)
    assert metrics["acceptance"] == 1.0 and card["acceptance"]["refuse"] == 1.0
    assert usage["requests"] == 9 and usage["prompt_tokens"] == 900
    assert usage["cost"] == pytest.approx((900 * 2 + 90 * 10) / 1e6)
    answered = next(row for row in rows if row.origin == "teacher" and row.tags["kind"] == "faq")
    assert answered.answer == next(row for row in ROWS if row.id == answered.id).answer
    assert (
        answered.prompt == next(row for row in ROWS if row.id == answered.id).prompt
    )  # the article is in no training prompt


def test_wrong_answers_are_counted_and_replaced_by_gold_or_dropped(corpus, tmp_path):
    with Teacher(lambda messages, count: "It ships in 99 days.") as teacher:
        any_share = {"gold_ratio": 0.5, "samples": 3, "min_acceptance": 0}
        _, rows, card, usage = trace(corpus, teacher.url, tmp_path, "gold", **any_share)
        assert rows == ROWS and card["teacher"] == 0
        assert usage["requests"] == 18 and sum(card["samples_dropped"].values()) == 18
        _, rows, card, _ = trace(corpus, teacher.url, tmp_path, "drop", **any_share, when_rejected="drop")
        assert len(rows) == 6 == card["rows_left_out"]
        with pytest.raises(DataError, match="when_rejected"):
            trace(corpus, teacher.url, tmp_path, "none", gold_ratio=0, min_acceptance=0, when_rejected="drop")


def test_samples_stop_at_the_first_accepted_one(corpus, tmp_path):
    tried: dict[str, int] = {}

    def second_time_right(messages, _):
        last = messages[-1]["content"].partition("\n\nAnswer")[0]
        tried[last] = tried.get(last, 0) + 1
        return right(messages) if tried[last] == 2 else "No idea at all."

    with Teacher(second_time_right) as teacher:
        _, _, card, usage = trace(corpus, teacher.url, tmp_path, gold_ratio=0, samples=4)
    assert (
        set(tried.values()) == {2}
        and card["accepted_with_hint"] == 10
        and usage["requests"] == 24
        and card["teacher"] == 12
    )


def test_seeds_differ_by_sample_and_stay_the_same_between_runs(corpus, tmp_path):
    def seeds(name, **settings):
        with Teacher(lambda messages, count: "No idea at all.") as teacher:
            more = {"gold_ratio": 0, "samples": 3, "min_acceptance": 0, **settings}
            trace(corpus, teacher.url, tmp_path, name, **more)
        return sorted(body.get("seed", -1) for body in teacher.seen)

    first = seeds("first")
    assert len(set(first)) == 36 == len(first)
    assert seeds("again") == first
    assert set(seeds("none", send_seed=False)) == {-1}


def test_max_prompts_bounds_the_requests(corpus, tmp_path):
    with Teacher(right) as teacher:
        _, rows, card, usage = trace(corpus, teacher.url, tmp_path, max_prompts=4, gold_ratio=0)
    assert usage["requests"] == 4 == card["prompts_asked"] and len(rows) == 12


def test_a_killed_run_asks_only_for_what_is_missing(corpus, tmp_path):
    def fails_at_the_sixth(messages, count):
        if count == 5:
            time.sleep(0.3)  # still on its way when the other one fails
        return right(messages) if count <= 5 else 401

    with Teacher(fails_at_the_sixth) as teacher:
        with pytest.raises(EndpointError):
            trace(corpus, teacher.url, tmp_path, "first", gold_ratio=0)
        (kept,) = (tmp_path / "scratch").glob("*.jsonl")
        lines = kept.read_bytes().splitlines(keepends=True)
        assert len(lines) == 5, "the answers in flight when the endpoint failed are waited for"
        kept.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])  # a power cut while it wrote the last one
        teacher.reply = right
        teacher.seen.clear()
        metrics, rows, card, usage = trace(corpus, teacher.url, tmp_path, "second", gold_ratio=0)
        assert len(teacher.seen) == 8
        assert metrics["reused"] == 4 and usage["requests"] == 12 and card["teacher"] == 12
        _, again, *_ = trace(corpus, teacher.url, tmp_path, "third", gold_ratio=0)
        assert len(teacher.seen) == 8 and again == rows
        warmer = {"gold_ratio": 0, "temperature": 0.9}
        trace(corpus, teacher.url, tmp_path, "fourth", **warmer)  # another request: nothing of it is known
        assert len(teacher.seen) == 20
    assert all(line.endswith(b"}\n") for line in kept.read_bytes().splitlines(keepends=True))


def test_the_artifact_does_not_tell_how_often_it_was_interrupted(corpus, tmp_path):
    failures = {"Item 0 ships": 503, "Item 7 ships": 401}  # each for the first time it is asked

    def unsteady(messages, _):
        item = right(messages)[:12]
        return failures.pop(item, None) or right(messages)

    with Teacher(unsteady) as teacher:
        with pytest.raises(EndpointError):
            trace(corpus, teacher.url, tmp_path, "first", gold_ratio=0)
        metrics, *_ = trace(corpus, teacher.url, tmp_path, "cut", gold_ratio=0)
        next((tmp_path / "scratch").glob("*.jsonl")).unlink()
        trace(corpus, teacher.url, tmp_path, "whole", gold_ratio=0)
    assert metrics["retries"] == 1 and metrics["reused"] >= 7
    digests = Digests(tmp_path / "none")
    assert digests.tree(tmp_path / "cut") == digests.tree(tmp_path / "whole")


@pytest.mark.parametrize("garbage", [b"\x00" * 300, b"[1, 2]\n{}\n\xff\xfe\n", b'{"row": "row-1"'])
def test_garbage_among_the_kept_answers_is_passed_over(corpus, tmp_path, garbage):
    with Teacher(right) as teacher:
        kept = answer_file(StepRun("traces", 3, tmp_path / "scratch"), f"{teacher.url} ")
        kept.parent.mkdir()
        kept.write_bytes(garbage)
        _, _, card, _ = trace(corpus, teacher.url, tmp_path, "first", gold_ratio=0)
        trace(corpus, teacher.url, tmp_path, "second", gold_ratio=0)
    assert card["teacher"] == 12 == len(teacher.seen)


def test_ctrl_c_leaves_what_was_answered(corpus, tmp_path, monkeypatch):
    def interrupt(store, sample):
        add(store, sample)
        if len(store.added) == 3:
            raise KeyboardInterrupt

    add = SampleStore.add
    monkeypatch.setattr(SampleStore, "add", interrupt)
    with Teacher(right) as teacher, pytest.raises(KeyboardInterrupt):
        trace(corpus, teacher.url, tmp_path, gold_ratio=0)
    assert len(next((tmp_path / "scratch").glob("*.jsonl")).read_text().splitlines()) >= 3


def test_the_key_is_sent_and_written_nowhere(corpus, tmp_path, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("TEACHER_KEY", KEY)
    with Teacher(right) as teacher:
        trace(corpus, teacher.url, tmp_path, api_key_env="TEACHER_KEY")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 6 and not [path for path in written if KEY.encode() in path.read_bytes()]
    assert KEY not in caplog.text and KEY not in repr(OpenAI(api_key_env="TEACHER_KEY"))
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(ConfigError, match="TEACHER_KEY"):
        trace(corpus, "http://127.0.0.1:9/v1", tmp_path, "no_key", api_key_env="TEACHER_KEY")


def test_examples_are_a_shared_prefix_and_never_about_the_same_article():
    articles = {
        f"article-{n}": Article(id=f"article-{n}", title="T", topic="i", text=f"Item {n} ships.") for n in range(12)
    }
    faq = [row for row in ROWS if row.tags["kind"] == "faq"]
    examples = choose_examples(faq, 2, seed=0)
    assert len({row.evidence for row in examples}) == 3
    chats = {row.id: teacher_messages(row, SUPPORT_TASK, examples, 2, articles) for row in faq}
    others = [json.dumps(chats[row.id][:-1]) for row in faq if row not in examples[:2]]
    assert len(set(others)) == 1
    for row in faq:
        assert [turn["role"] for turn in chats[row.id]] == ["system", "user", "assistant", "user", "assistant", "user"]
        assert all(f"Item {row.id[4:]} ships in" not in turn["content"] for turn in chats[row.id][1:-1])
        assert "Item" in chats[row.id][-1]["content"] and row.label not in json.dumps(chats[row.id])


def test_refusals_are_shown_with_their_own_reason_but_not_their_own_words():
    rows = [
        make_row(number, "refuse").model_copy(
            update={"key": (Label(label="codes" if number % 2 else "law"), Decline()), "group": f"g{number // 4}"}
        )
        for number in range(12)
    ]
    shown = choose_refusals(rows[1], rows, 2, seed=0)
    assert len(shown) == 2
    assert all(row.label == "codes" and row.group != rows[1].group for row in shown)
    chat = teacher_messages(rows[1], SUPPORT_TASK, shown, 2, None)
    assert len(chat) == 6 and "Decline" in chat[-1]["content"]


def test_a_hint_tells_the_fact_on_the_second_try_only(corpus, tmp_path):
    with Teacher(lambda messages, count: "No idea at all.") as teacher:
        trace(corpus, teacher.url, tmp_path, gold_ratio=0, samples=2, min_acceptance=0)
    hinted = ["that says: " in body["messages"][-1]["content"] for body in teacher.seen]
    assert sum(hinted) == 10 and len(hinted) == 24  # 2 of the 12 rows are refusals


@pytest.mark.parametrize(
    "settings",
    [
        {"gold_ratio": 1.5},
        {"samples": 0},
        {"when_rejected": "keep"},
        {"api_key": "x"},
        {"prices": {"cents": 1}},
        {"concurrency": 0},
    ],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValueError):
        OpenAI(**settings)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="temperature 0"):
        OpenAI(temperature=0.0, samples=3, hint="always")
    with pytest.raises(ConfigError) as caught:
        OpenAI(base_url="https://me:hunter2@host/v1")
    assert "hunter2" not in str(caught.value)


def test_a_teacher_is_needed_without_a_url(corpus, tmp_path):
    run = StepRun(step="traces", seed=0, scratch=tmp_path / "scratch")
    ports = {"prompts": (Artifact("corpus", Kind.CORPUS, corpus),)}
    with pytest.raises(ConfigError, match="traces.inputs.teacher"):
        OpenAI()(Inputs(ports), tmp_path, run)
    folder = {**ports, "teacher": (Artifact("models.teacher", Kind.MODEL, corpus),)}
    with pytest.raises(ModelError, match="gguf"):
        OpenAI()(Inputs(folder), tmp_path, run)


def test_an_unknown_article_is_named(corpus, tmp_path):
    (corpus / "articles.jsonl").write_text("")
    with pytest.raises(DataError, match="article-"):
        trace(corpus, "http://127.0.0.1:9/v1", tmp_path)


def test_asked_reasoning_is_read_out_of_the_reply_and_the_stops_end_the_answer_only(corpus, tmp_path):
    def think(messages, _=0):
        return f"<think>\nThe article says so. It is plain.\n</think>\n{right(messages)} More to follow."

    with Teacher(think) as teacher:
        _, rows, card, _ = trace(corpus, teacher.url, tmp_path, gold_ratio=0, reasoning=Reasoning(ask="request"))
        _, plain, *_ = trace(corpus, teacher.url, tmp_path, "plain", gold_ratio=0, min_acceptance=0)
    assert card["teacher"] == 12 == card["with_reasoning"]
    assert {row.reasoning for row in rows} == {"The article says so. It is plain."}
    assert [row.answer for row in rows] == [row.answer for row in ROWS]
    asked = teacher.seen[0]
    assert "stop" not in asked and asked["max_tokens"] == 60 + 150 and "<think>" in asked["messages"][-1]["content"]
    examples = [turn["content"] for turn in asked["messages"] if turn["role"] == "assistant"]
    assert examples and all(text.startswith("<think>\n") for text in examples)
    assert plain == ROWS, "where no reasoning is wanted, an answer with one is markup"


def test_a_reasoning_models_own_thoughts_are_taken(corpus, tmp_path):
    with Teacher(
        lambda messages, _: {"content": right(messages), "reasoning_content": "Known.\n\n  So it is. "}
    ) as teacher:
        _, rows, *_ = trace(corpus, teacher.url, tmp_path, gold_ratio=0, reasoning=Reasoning(ask="native"))
    assert {row.reasoning for row in rows} == {"Known.\nSo it is."} and {row.origin for row in rows} == {"teacher"}
    assert "<think>" not in json.dumps(teacher.seen)


@pytest.mark.parametrize(
    ("thought", "rejection"),
    [
        ("", "no reasoning"),
        ("It weighs 912 grams.", "reasoning: invents"),
        ("I can't help with this.", "reasoning: contradicts"),
        ("word " * 81, "reasoning: too long"),
        ("so it is, so it is, so it is, so it is", "reasoning: form"),
    ],
)
def test_answers_with_bad_reasoning_are_dropped_and_counted(corpus, tmp_path, thought, rejection):
    with Teacher(lambda messages, _: {"content": right(messages), "reasoning_content": thought}) as teacher:
        settings = {
            "gold_ratio": 0,
            "max_prompts": 3,
            "samples": 1,
            "reasoning": Reasoning(ask="native"),
            "min_acceptance": 0,
        }
        _, rows, card, _ = trace(corpus, teacher.url, tmp_path, **settings)
    asked = next(iter(card["samples_dropped"]), "")
    assert asked == rejection and (rows == ROWS) == (card["teacher"] == 0)


def test_reasoning_that_ends_at_another_quantity_contradicts():
    evidence = Evidence(accept=(("45 days",),), narrow="how long? 45 days", wide="how long? 45 days, repairs 14 days")
    assert judge_reasoning("Repairs take 14 days.", evidence, SENTENCE, 80) == "reasoning: contradicts"
    assert judge_reasoning("Repairs take 14 days, but returns 45 days.", evidence, SENTENCE, 80) == ""


def test_the_embedded_server_answers(corpus, tmp_path):
    from tasks.shared.gguf.writer import write_gguf
    from tests.tiny_llama import save_tiny

    write_gguf(save_tiny(tmp_path / "hf"), tmp_path / "tiny.gguf")
    ports = {
        "prompts": (Artifact("corpus", Kind.CORPUS, corpus),),
        "teacher": (Artifact("models.teacher", Kind.MODEL, tmp_path / "tiny.gguf"),),
    }
    (tmp_path / "out").mkdir()
    technique = OpenAI(
        max_prompts=2, samples=1, max_tokens=4, concurrency=2, min_acceptance=0, embedded=Embedded(context=1024)
    )
    metrics = technique(
        Inputs(ports),
        tmp_path / "out",
        StepRun(step="traces", seed=0, scratch=tmp_path / "scratch", compute=Compute(threads=1)),
    )
    assert metrics["requests"] == 2 and metrics["rows"] == 12


def test_the_yaml_holds_the_defaults():
    from dataclasses import asdict

    told = yaml.safe_load((Path(__file__).parents[4] / "conf/traces/openai.yaml").read_text())
    assert told.pop("_target_") == "tasks.traces.openai.OpenAI"
    assert told == json.loads(json.dumps(asdict(OpenAI())))


LOCAL = {"base_url": "", "model": "", "max_prompts": 1, "samples": 1, "max_tokens": 4, "min_acceptance": 0}
"""llama.cpp on this machine, asked once."""
CHANGES = {
    "base_url": Change(lambda case: case.more["other_url"]),
    "model": Change("other"),
    "api_key_env": Change("STILLROOM_TEST_KEY"),
    "concurrency": Change(4),
    "timeout_s": Change(60.0),
    "max_attempts": Change(2),
    "length_parameter": Change("max_completion_tokens"),
    "extra_body": Change({"reasoning_effort": "low"}),
    "samples": Change(3),
    "vote": Change(True, {"samples": 3, "limits.support": 0.3}),
    "temperature": Change(0.9),
    "top_p": Change(0.5),
    "max_tokens": Change(50),
    "stop": Change(["\n"]),
    "send_seed": Change(False),
    "article_in_prompt": Change(False),
    "examples": Change(1),
    "hint": Change("never"),
    "accept": Change("always"),
    "gold_ratio": Change(0.5),
    "when_rejected": Change("drop"),
    "max_prompts": Change(4),
    "min_acceptance": Change(1.0, refused="min_acceptance"),
    "budget.requests": Change(3),
    "budget.tokens": Change(1500),
    "budget.money": Change(0.0015, {"prices.input": 1.0, "prices.output": 1.0}),
    "when_capped": Change("fail", {"budget.requests": 3}, refused="budget: used up"),
    "reasoning.ask": Change("request"),
    "reasoning.tokens": Change(20, {"reasoning.ask": "native"}),
    "reasoning.max_words": Change(2, {"reasoning.ask": "native"}),
    "limits.min_words": Change(8),
    "limits.max_words": Change(6),
    "limits.line_breaks": Change(True),
    "limits.markup": Change(True),
    "limits.repetition": Change(True),
    "limits.inventions": Change(True, {"limits.other_numbers": True}),
    "limits.support": Change(0.3),
    "limits.other_numbers": Change(True),
    "limits.negations": Change(True),
    "prices.input": Change(1.0),
    "prices.output": Change(1.0),
    "embedded.context": Change(256, {**LOCAL, "embedded.context": 512}, refused="status 400.*context"),
    "embedded.port": Change(lambda case: case.more["port"], LOCAL),
}
PLAIN = "Item {n} ships in {days} days."
WORDINGS = {
    1: "Item {n} ships in {days} days, not before.",
    2: "Item {n} ships in {days} days and weighs 77 grams.",
    3: "Item {n} ships in {days} days, splendid marvellous wonderful.",
    5: "Item {n} ships\nin {days} days.",
    6: "Item {n} ships in **{days} days**.",
    7: "Item {n} ships in {days} days, item {n} ships in {days} days.",
    8: "Item {n} ships in {days} days and weighs 78 grams.",
    10: "Item {n} ships in {days} days, item {n} ships in {days} days.",
}
"""Faults of answers by row number."""


def vary(body, words):
    """A reply that every part of the request changes: its first word by the whole body, the rest by the question."""
    word = words[sha256(json.dumps(body, sort_keys=True).encode()).digest()[0] % len(words)]
    last = body["messages"][-1]["content"]
    number = int(re.search(r"question (\d+)\?", last)[1])
    wording = "I can't share codes." if "Decline" in last else WORDINGS.get(number, PLAIN)
    return {
        "content": f"{word}, {wording.format(n=number, days=number + 20)}",
        "reasoning_content": "It is known well.",
    }


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    from tasks.shared.gguf.writer import write_gguf
    from tests.tiny_llama import build_model, save_tiny

    write_gguf(save_tiny(folder / "hf", build_model(num_hidden_layers=1)), folder / "tiny.gguf")
    corpus = write_corpus(folder / "corpus", more=" It weighs 77 grams.")
    inputs = Inputs(
        {
            "prompts": (Artifact("corpus", Kind.CORPUS, corpus),),
            "teacher": (Artifact("models.teacher", Kind.MODEL, folder / "tiny.gguf"),),
        }
    )
    words = ("So", "Now", "Yes", "Oh", "Ah", "And", "Hm", "Aha")
    with pytest.MonkeyPatch.context() as patch, Teacher(None) as one, Teacher(None) as other:
        patch.setenv("STILLROOM_TEST_KEY", KEY)
        one.reply = lambda messages, count: vary(one.seen[-1], words)
        other.reply = lambda messages, count: vary(other.seen[-1], words[::-1])
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        more = {"other_url": other.url, "port": port}
        settings = {
            "base_url": one.url,
            "model": "teacher",
            "concurrency": 2,
            "temperature": 0.3,
            "embedded.context": 1024,
            "gold_ratio": 0,
            "min_acceptance": 0,
            "when_capped": "publish",
        }
        yield Case(folder, inputs, settings, untimed_traces, alone=LOCAL, more=more)
