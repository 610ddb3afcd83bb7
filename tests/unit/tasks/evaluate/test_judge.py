"""An LLM judge behind a local endpoint: wins in both orders, stored opinions, outages."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tasks.evaluate import judge as module
from tasks.evaluate.grading.preference import Pair
from tasks.evaluate.judge import Judge
from tasks.shared.engines import openai_endpoint
from tasks.shared.engines.embedded_server import Embedded
from tasks.shared.errors import ConfigError, DataError, EndpointError
from tasks.shared.formats.records import Machine
from tasks.shared.formats.rows import Message, Row, write_rows
from tasks.shared.formats.scores import (
    EvaluationSummary,
    ItemScore,
    Measure,
    ModelSummary,
    Scores,
    read_scores,
    write_scores,
)
from tasks.shared.formats.tasks import Task, write_tasks
from tasks.shared.technique import Artifact, Inputs, Kind, StepRun
from tests.outputs import fingerprints
from tests.settings_case import Case, Change
from tests.tiny_llama import empty_run, save_tiny

KEY = "sk-very-secret-0123456789"
ITEMS = 6


class Referee(ThreadingHTTPServer):
    """Local judge: `reply(body, count)` returns its text, or a status to fail with."""

    daemon_threads = True

    def __init__(self, reply: Callable[[dict[str, Any], int], str | int]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.seen, self.lock, self.key = reply, list[dict[str, Any]](), threading.Lock(), ""

    def __enter__(self) -> "Referee":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Referee

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(body)
            reply = self.server.reply(body, len(self.server.seen))
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            reply = 401
        choice = {"message": {"content": reply}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        refused = {"error": f"bad key {self.headers.get('Authorization')}"}  # some servers say back what they got
        content = json.dumps(refused if isinstance(reply, int) else {"choices": [choice], "usage": usage}).encode()
        self.send_response(reply if isinstance(reply, int) else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        return


def answers_of(body: dict[str, Any]) -> tuple[str, str]:
    text = body["messages"][-1]["content"]
    first, _, second = text.partition("Answer A:\n")[2].partition("\n\nAnswer B:\n")
    return first, second


def fair(body: dict[str, Any], _: int) -> str:
    """Prefer the answer with more right words, in either position."""
    first, second = (text.count("right") for text in answers_of(body))
    return f"Because. Verdict: {'tie' if first == second else 'A' if first > second else 'B'}"


def write_answers(folder: Path) -> Path:
    """Write scores: good beats the baseline, bad loses, same ties, teacher is a reference."""
    folder.mkdir()
    machine = Machine(cpu="x", cores=1, memory_bytes=1, platform="x")
    roles: dict[str, Any] = {"tuned": "baseline", "good": "candidate", "bad": "candidate", "same": "candidate", "dead": "candidate",
                             "tuned again": "repeat", "teacher": "reference"}  # fmt: skip
    models = {
        name: ModelSummary(
            role=role, engine="transformers", format="float32", failure="it broke" if name == "dead" else ""
        )
        for name, role in roles.items()
    }
    told = {
        "tuned": "right {n}",
        "good": "right right {n}",
        "bad": "wrong {n}",
        "same": "Right  {n}",
        "tuned again": "wrong {n}",
        "teacher": "right",
    }
    items = [
        ItemScore(
            measure=measure, id=f"t{n}", tags={"kind": "faq"}, question=f"Question {n}?", wanted=f"gold {n}",
            values=dict.fromkeys(told, 1.0), answers={name: f"{text.format(n=n)}{more}" for name, text in told.items()},
        )
        for measure, more in (("intent", ""), ("rouge_l", ""), ("fact", ", in fact"))
        for n in range(ITEMS)
    ]  # fmt: skip
    measures = {
        "intent": Measure(title="intent"),
        "rouge_l": Measure(title="rouge", binary=False),
        "fact": Measure(title="fact"),
    }
    write_scores(
        folder, EvaluationSummary(step="answers", measures=measures, models=models, machine=machine, versions={}), items
    )
    return folder


def inputs_of(folder: Path) -> Inputs:
    return Inputs({"answers": (Artifact("answers", Kind.SCORES, folder),)})


def judge(tmp_path: Path, url: str, run: StepRun | None = None, **settings: Any) -> tuple[Scores, Path, dict[str, Any]]:
    folder = tmp_path / "answers"
    out, own = empty_run(tmp_path, f"judge{len(list(tmp_path.iterdir()))}")
    named = {"model": "judge"} if url else {}
    technique = Judge(base_url=url, **named | {"concurrency": 2, "limit": 0} | settings)
    figures = technique(
        inputs_of(folder if folder.is_dir() else write_answers(folder)), out, replace(run or own, step="judge")
    )
    return read_scores(out), out, figures


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_endpoint, "_backoff", lambda state: 0.01)


def means(scores: Scores) -> dict[str, float]:
    names = scores.items[0].values
    return {name: sum(item.values[name] for item in scores.items) / len(scores.items) for name in names}


def test_better_answers_win_worse_lose_and_equal_ones_tie_unasked(tmp_path: Path) -> None:
    with Referee(fair) as referee:
        scores, _, figures = judge(tmp_path, referee.url)
    assert means(scores) == {"tuned": 0.5, "good": 1.0, "bad": 0.0, "same": 0.5, "tuned again": 0.0}
    assert len(referee.seen) == figures["requests"] == 2 * 2 * ITEMS, "the same words are judged once, equal ones never"
    assert figures["prompt_tokens"] == 2400 and figures["good.judged"] == 1.0
    assert scores.summary.models["good"].figures["judge_agreement"].value == 1.0
    assert scores.summary.models["good"].figures["judge_prefers_first"].value == 0.5
    assert not scores.summary.models["same"].figures
    assert scores.summary.models["dead"].failure == "it broke" and "teacher" not in scores.summary.models
    item = scores.items[0]
    assert (item.measure, item.tags, item.wanted, item.answers["bad"]) == (
        "judged",
        {"kind": "faq"},
        "gold 0",
        "wrong 0",
    )
    measure = scores.summary.measures["judged"]
    assert (measure.binary, measure.better, measure.unit) == (False, "higher", "share")
    assert {body["temperature"] for body in referee.seen} == {0.0}


def test_a_judge_that_always_takes_the_first_ties_everything_and_is_refused(tmp_path: Path) -> None:
    with (
        Referee(lambda body, _: "Verdict: A") as referee,
        pytest.raises(EndpointError, match=r"biased(.|\n)*agree in 0 of \d+ pairs(.|\n)*hides every loss"),
    ):
        judge(tmp_path, referee.url, model="biased")
    with Referee(lambda body, _: "Verdict: A") as referee:
        scores, _, figures = judge(tmp_path, referee.url, model="biased", limit=4)
    assert set(means(scores).values()) == {0.5}, "too few pairs to refuse the judge"
    assert figures["good.agreement"] == 0.0 and scores.summary.models["bad"].figures["judge_prefers_first"].value == 1.0
    assert "biased" in scores.summary.notes[0] and "agree in 0 of" in scores.summary.notes[1]


def test_replies_without_a_verdict_tie_and_are_told_and_a_judge_that_never_gives_one_is_refused(tmp_path: Path) -> None:
    with Referee(lambda body, count: "Hm." if count == 1 else fair(body, count)) as referee:
        scores, _, _ = judge(tmp_path, referee.url, concurrency=1)
    assert scores.summary.notes[1] == "judged: 1 pairs tie because the judge refused them or gave no readable verdict."
    with (
        Referee(lambda *_: "I like both.") as referee,
        pytest.raises(EndpointError, match=r"none of 36 replies ends with a verdict"),
    ):
        judge(tmp_path, referee.url)


def test_a_judge_that_is_down_is_one_passing_error_and_what_it_said_is_kept(tmp_path: Path) -> None:
    run = StepRun("judge", 0, tmp_path / "scratch")
    with Referee(fair) as whole:
        _, wanted, _ = judge(tmp_path, whole.url)
    with Referee(lambda body, count: fair(body, count) if count <= 9 else 503) as referee:
        with pytest.raises(EndpointError, match=r"503.*\(2 attempts\)") as failure:
            judge(tmp_path, referee.url, run, max_attempts=2, concurrency=1)
        assert failure.value.retryable, "the step is tried again"
        referee.reply = fair
        referee.seen.clear()
        _, out, figures = judge(tmp_path, referee.url, run, max_attempts=2, concurrency=1)
        assert len(referee.seen) == 24 - 9 and figures["requests"] == 24
        referee.seen.clear()
        judge(tmp_path, referee.url, run, instructions="Other words. Verdict: A")
        assert len(referee.seen) == 24, "another question is asked anew"
    assert fingerprints(out) == fingerprints(wanted)
    with pytest.raises(EndpointError, match="connection failed") as failure:
        judge(tmp_path, "http://127.0.0.1:9/v1", max_attempts=1)
    assert failure.value.retryable


def test_a_pair_that_the_judge_refuses_ties_and_the_others_are_judged(tmp_path: Path) -> None:
    def picky(body: dict[str, Any], count: int) -> str | int:
        return 422 if "right right 3" in body["messages"][-1]["content"] else fair(body, count)

    with Referee(picky) as referee:
        scores, _, figures = judge(tmp_path, referee.url)
        assert len(referee.seen) == 2 * 2 * ITEMS, "what is refused for good is asked once"
        assert [item.values["good"] for item in scores.items] == [1.0, 1.0, 1.0, 0.5, 1.0, 1.0]
        assert scores.summary.models["good"].figures["judge_unreadable"].value == 1 and figures["refused"] == 2
        assert "judge_unreadable" not in scores.summary.models["bad"].figures
        assert "judged: 1 pairs tie" in scores.summary.notes[1]
        referee.reply = lambda body, count: 400
        with pytest.raises(EndpointError, match=r"refused all of 24 requests.*status 400") as failure:
            judge(tmp_path, referee.url)
        assert not failure.value.retryable
        referee.reply = lambda body, count: 404
        with pytest.raises(EndpointError, match="status 404"):
            judge(tmp_path, referee.url)


def test_the_key_is_sent_and_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STILLROOM_TEST_KEY", KEY)
    with caplog.at_level(logging.DEBUG), Referee(fair) as referee:
        referee.key = KEY
        judge(tmp_path, referee.url, api_key_env="STILLROOM_TEST_KEY")
        monkeypatch.setenv("STILLROOM_TEST_KEY", KEY + "x")
        with pytest.raises(EndpointError, match="401") as failure:
            judge(tmp_path, referee.url, api_key_env="STILLROOM_TEST_KEY")
    assert KEY not in str(failure.value) and KEY not in caplog.text
    written = [file.read_text(encoding="utf-8") for file in tmp_path.rglob("*") if file.is_file()]
    assert written and not any(KEY in text for text in written)
    monkeypatch.delenv("STILLROOM_TEST_KEY")
    with pytest.raises(ConfigError, match="STILLROOM_TEST_KEY is not set"):
        judge(tmp_path, referee.url, api_key_env="STILLROOM_TEST_KEY")


def test_wrong_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"base_url: empty, and no model at the port `judge`"):
        judge(tmp_path, "")
    (problem,) = Judge().plan_problems("steps.judge", {}, {})
    assert "steps.judge.base_url" in str(problem) and "a GGUF to run here" in str(problem)
    assert list(Judge().plan_problems("steps.judge", {"judge": ("models.judge",)}, {})) == []
    assert list(Judge(base_url="http://127.0.0.1:1/v1", model="judge").plan_problems("steps.judge", {}, {})) == []
    with pytest.raises(ConfigError, match="not a URL"):
        Judge(base_url="localhost")
    with pytest.raises(DataError, match=r"no answers under 'nonsense'\n  wanted: one of fact, intent, rouge_l"):
        judge(tmp_path, "http://127.0.0.1:9/v1", measure="nonsense")


def write_chats(folder: Path) -> Path:
    """Write a corpus of chats without labels: the first of two turns, the second without an answer."""
    folder.mkdir()
    talk = (
        Message(role="system", content="Be kind."), Message(role="user", content="Hello."), Message(role="assistant", content="Hi."),
        Message(role="user", content="A poem, please."),
    )  # fmt: skip
    rows = [Row(id=f"t{n}", group=f"g{n}", messages=talk if n == 0 else talk[1:2]) for n in range(ITEMS)]
    write_rows(folder / "test.jsonl", rows)
    write_tasks(folder, {"chat": Task(judge="The better answer rhymes.")})
    return folder


def test_criteria_and_conversation_are_those_of_the_corpus(tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    ports = {
        **inputs_of(write_answers(tmp_path / "answers")).ports,
        "data": (Artifact("corpus", Kind.CORPUS, write_chats(tmp_path / "corpus")),),
    }
    with Referee(fair) as referee:
        Judge(base_url=referee.url, model="judge", limit=1, measure="rouge_l")(Inputs(ports), out, run)
        own, run = empty_run(tmp_path, "own")
        Judge(base_url=referee.url, model="judge", limit=1, instructions="Mine.")(Inputs(ports), own, run)
    first, last = referee.seen[0]["messages"], referee.seen[-1]["messages"]
    assert "The better answer rhymes. The order" in first[0]["content"] and last[0]["content"] == "Mine."
    assert first[1]["content"].startswith(
        "Question:\nuser: Hello.\nassistant: Hi.\nuser: A poem, please.\n\nReference answer:\ngold 0"
    )


def test_every_item_with_a_full_text_is_judged_once(tmp_path: Path) -> None:
    with Referee(fair) as referee:
        scores, _, _ = judge(tmp_path, referee.url)
        assert [item.id for item in scores.items] == [f"t{n}" for n in range(ITEMS)]
        assert not any("in fact" in text for item in scores.items for text in item.answers.values())


def test_answers_without_a_reference_are_compared_without_one() -> None:
    item = ItemScore(measure="loop", id="a", question="Hello?", values={}, answers={"tuned": "Hi.", "slim": "Ho."})
    (system, user) = Pair(item, "tuned", "slim", "Hello?").messages("", swapped=True)
    assert user["content"] == "Question:\nHello?\n\nAnswer A:\nHo.\n\nAnswer B:\nHi."
    assert "if there is one" in system["content"]


def test_a_judge_runs_on_this_machine_for_chats_without_labels(tmp_path: Path) -> None:
    from tasks.shared.gguf.writer import write_gguf

    gguf = tmp_path / "judge.gguf"
    write_gguf(save_tiny(tmp_path / "model"), gguf, "f16")
    out, run = empty_run(tmp_path)
    ports = {**inputs_of(write_answers(tmp_path / "answers")).ports, "judge": (Artifact("judge", Kind.MODEL, gguf),)}
    technique = Judge(limit=1, max_tokens=2, concurrency=1, embedded={"context": 512})
    with pytest.raises(
        EndpointError, match="replies ends with a verdict"
    ):  # random weights say nothing: but they were asked
        technique(Inputs(ports), out, run)
    assert len((run.scratch / "opinions.jsonl").read_text(encoding="utf-8").splitlines()) == 4


def verdict_by(body: dict[str, Any], letters: str) -> str:
    """Reply that depends on every part of the request."""
    return f"Verdict: {letters[sha256(json.dumps(body, sort_keys=True).encode()).digest()[0] % len(letters)]}"


CHANGES = {
    "base_url": Change(lambda case: case.more["other"]),
    "model": Change("other"),
    "api_key_env": Change("STILLROOM_TEST_KEY"),
    "concurrency": Change(4),
    "timeout_s": Change(60.0),
    "max_attempts": Change(2),
    "length_parameter": Change("max_completion_tokens"),
    "extra_body": Change({"reasoning_effort": "low"}),
    "temperature": Change(0.5),
    "max_tokens": Change(50),
    "measure": Change("fact"),
    "limit": Change(3),
    "instructions": Change("Say Verdict: A."),
    "embedded.context": Change(512, {"base_url": "", "model": ""}, inputs="embedded"),
    "embedded.port": Change(8099, {"base_url": "", "model": ""}, inputs="embedded"),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    answers = write_answers(folder / "answers")
    with pytest.MonkeyPatch.context() as patch, Referee(fair) as one, Referee(fair) as other:
        patch.setenv("STILLROOM_TEST_KEY", KEY)
        one.reply = lambda body, _: verdict_by(body, "ABAB")
        other.reply = lambda body, _: verdict_by(body, "BABA")

        @contextmanager
        def pretend(path: Path, settings: Embedded, **_: Any) -> Iterator[tuple[str, str]]:
            """Another judge for another context: a tiny model gives no verdicts."""
            yield (one if settings.context == Embedded().context else other).url, path.name

        patch.setattr(module, "serve_embedded", pretend)
        embedded = Inputs(
            {**inputs_of(answers).ports, "judge": (Artifact("judge", Kind.MODEL, folder / "judge.gguf"),)}
        )
        yield Case(
            folder,
            inputs_of(answers),
            {"base_url": one.url, "model": "judge", "limit": 0},
            more={"other": other.url, "embedded": embedded},
        )
