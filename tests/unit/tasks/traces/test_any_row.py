"""Rows of every kind of task: asked, accepted by their key, form or a judge, and written in their layout."""

import json
import logging

import pytest

from tasks.shared.engines import openai_endpoint
from tasks.shared.errors import ConfigError, DataError, EndpointError
from tasks.shared.formats.rows import Message, Row, ToolCall, read_rows, write_rows
from tasks.shared.formats.targets import Call, Decline, Facts, Json, Label, NoCall, Number, Text
from tasks.shared.formats.tasks import Requests, Task, write_tasks
from tasks.shared.technique import Artifact, Inputs, Kind, StepRun
from tasks.traces.openai import OpenAI, Prices
from tasks.traces.settings import Budget, Limits
from tests.fake_endpoint import Fake, reply, says

LIST = "Sure! Do this:\n\n- unplug it\n- call 555-0100\n\n**Then** wait."
TOOLS = json.dumps([{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}])


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(openai_endpoint, "_backoff", lambda state: 0.01)


def chat(number, *turns, **more):
    """A row from texts of user and assistant in turn."""
    roles = ("user", "assistant") * len(turns)
    messages = tuple(Message(role=role, content=text) for role, text in zip(roles, turns, strict=False))
    return Row(id=f"row-{number}", group=f"g{number}", messages=messages, **more)


def trace(folder, rows, url, tasks=None, name="out", **settings):
    """Metrics, rows and card of a run; all runs of a test share the cache of answers."""
    corpus, out = folder / f"corpus-{name}", folder / name
    corpus.mkdir()
    out.mkdir()
    write_rows(corpus / "train.jsonl", rows)
    write_tasks(corpus, tasks or {})
    run = StepRun("traces", 3, folder / f"scratch-{name}", folder / "predictions" / f"code-{name}")
    inputs = Inputs({"prompts": (Artifact("corpus", Kind.CORPUS, corpus),)})
    metrics = OpenAI(base_url=url, **{"gold_ratio": 0, "samples": 1, "concurrency": 2, **settings})(inputs, out, run)
    return metrics, read_rows(out / "train.jsonl"), json.loads((out / "card.json").read_text())


def bodies(server):
    return [body for _, _, body in server.seen]


def asked(body):
    return body["messages"][-1]["content"]


# Any row


def test_plain_chats_are_sent_as_they_are_and_the_answer_is_kept_verbatim(tmp_path):
    rows = [chat(0, "Hi", "Hello", "It is broken", "Oh"), chat(1, "How are you?", "Fine."), chat(2, "Open question")]
    with Fake(says(LIST)) as server:
        _, traced, card = trace(tmp_path, rows, server.url)
    assert [row.answer for row in traced] == [LIST] * 3 and {row.origin for row in traced} == {"teacher"}
    assert traced[0].prompt == rows[0].prompt
    sent = sorted(bodies(server), key=lambda body: len(body["messages"]))
    assert [(turn["role"], turn["content"]) for turn in sent[2]["messages"]] == [
        ("user", "Hi"), ("assistant", "Hello"), ("user", "It is broken")
    ]  # fmt: skip
    assert "stop" not in sent[0] and sent[0]["max_tokens"] == Task().answer_tokens
    assert card["accepted_by"] == {"form": 3}


def test_an_unanswered_row_is_asked_whatever_the_ratio_and_left_out_without_an_answer(tmp_path, caplog):
    rows = [chat(0, "Hi", "Hello"), chat(1, "Answer me"), chat(2, "And me")]
    with Fake(lambda body: says("" if "And" in asked(body) else "Well.")) as server:
        _, traced, card = trace(tmp_path, rows, server.url, gold_ratio=1.0)
    assert [(row.id, row.answer) for row in traced] == [("row-0", "Hello"), ("row-1", "Well.")]
    assert card["prompts_asked"] == 2 and card["rows_left_out"] == 1 and card["samples_dropped"] == {"empty": 1}


def test_a_row_that_nobody_can_ask_is_counted_and_kept(tmp_path, caplog):
    greeting = Row(id="g", group="g", messages=(Message(role="assistant", content="Welcome!"),))
    with Fake(says("Well.")) as server:
        _, traced, _ = trace(tmp_path, [greeting, chat(1, "Hi", "Hello")], server.url)
    assert [row.origin for row in traced] == ["gold", "teacher"] and "1 rows cannot be asked" in caplog.text
    with pytest.raises(DataError, match="none of 1 rows can be asked"):
        trace(tmp_path, [greeting], "http://127.0.0.1:9/v1", name="none")


def test_a_teacher_that_is_never_asked_is_a_warning(tmp_path, caplog):
    _, traced, _ = trace(tmp_path, [chat(0, "Hi", "Hello")], "http://127.0.0.1:9/v1", gold_ratio=1.0)
    assert "never asked" in caplog.text and traced[0].origin == "gold"


def test_the_instruction_joins_the_system_turn_unless_the_task_has_requests(tmp_path):
    system = Message(role="system", content="You are kind.")
    rows = [chat(0, "Hi", "Hello", task="t"), chat(1, "Ho", "Hello", task="t"), chat(2, "No", "Hello", task="u")]
    rows[1] = rows[1].model_copy(update={"messages": (system, *rows[1].messages)})
    tasks = {
        "t": Task(instruction="Rhyme."),
        "u": Task(instruction="Rhyme.", requests=Requests(ask="In one line, please.")),
    }
    with Fake(says("Well.")) as server:
        trace(tmp_path, rows, server.url, tasks)
    found = {asked(body): [turn["content"] for turn in body["messages"][:-1]] for body in bodies(server)}
    assert found == {"Hi": ["Rhyme."], "Ho": ["You are kind.\n\nRhyme."], "No\n\nIn one line, please.": []}


def test_thoughts_in_the_text_are_no_part_of_a_chat_answer(tmp_path):
    with Fake(says("<think>\nHm.\n</think>\n\nWell.")) as server:
        _, traced, _ = trace(tmp_path, [chat(0, "Hi", "Hello")], server.url)
    assert traced[0].answer == "Well." and not traced[0].reasoning


# Acceptance by the key


@pytest.mark.parametrize(
    ("task", "key", "text", "written", "reason"),
    [
        (Task(type="classification", layout="alone"), Label(label="lost_card"), "Lost_card.", "lost_card", ""),
        (Task(type="classification", layout="alone"), Label(label="lost_card"), "refund", "", "wrong label"),
        (Task(type="classification", layout="json"), Label(label="a"), '```json\n{"label": "a"}\n```', '{"label": "a"}', ""),
        (Task(type="classification", layout="json"), Label(label="a"), '{"label": "b"}', "", "wrong label"),
        (Task(type="classification", layout="first_line"), Label(label="a"), "Some text.", "a\nSome text.", ""),
        (Task(type="reasoning"), Number(value=42), "6 times 7\nis 42.", "6 times 7\nis 42.", ""),
        (Task(type="reasoning"), Number(value=42), "It is 41.", "", "wrong number"),
        (Task(type="extraction"), Json(value='{"a": 1}'), '{"a": 1.0}', '{"a": 1.0}', ""),
        (Task(type="extraction"), Json(value='{"a": 1}'), '{"a": 2}', "", "wrong json"),
        (Task(type="qa"), Facts(groups=(("45 days",),)), "45 days", "45 days", ""),
        (Task(type="qa"), Facts(groups=(("45 days",),)), "Two weeks", "", "fact"),
        (Task(), Decline(), "I'm sorry, I can't help with that.", "I'm sorry, I can't help with that.", ""),
        (Task(), Decline(), "Of course: 1234.", "", "no refusal"),
        (Task(refusals=(r"leider nicht",)), Decline(), "Das geht leider nicht.", "Das geht leider nicht.", ""),
        (Task(type="summarization"), Text(references=("A b c.",)), "Anything\n- short", "Anything\n- short", ""),
        (Task(), Label(label="complaint"), "You cannot change it, but we can.", "You cannot change it, but we can.", ""),
    ],
)  # fmt: skip
def test_the_answer_key_decides_and_the_layout_is_the_tasks(tmp_path, task, key, text, written, reason):
    rows = [chat(0, "What?", "gold", key=(key,), task="t")]
    with Fake(says(text)) as server:
        _, traced, card = trace(tmp_path, rows, server.url, {"t": task}, min_acceptance=0)
        _, anyhow, _ = trace(tmp_path, rows, server.url, {"t": task}, name="always", accept="always")
    assert card["samples_dropped"] == ({reason: 1} if reason else {})
    assert traced[0].answer == (written or "gold")
    assert anyhow[0].origin == "teacher", "always looks at the form alone"
    assert len(server.seen) == 1, "another way of accepting pays for nothing"


def test_a_classifier_is_told_the_labels(tmp_path):
    rows = [chat(number, f"Q{number}", name, key=(Label(label=name),), task="t") for number, name in enumerate("ba")]
    with Fake(says("a")) as server:
        trace(tmp_path, rows, server.url, {"t": Task(type="classification", layout="alone")})
    assert "these labels and nothing else: a; b." in server.seen[0][2]["messages"][0]["content"]


def test_tools_are_sent_and_the_call_becomes_the_message(tmp_path):
    call = ToolCall(id="c", name="find", arguments='{"city": "Ulm"}')
    history = (
        Message(role="user", content="Find Bonn"),
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content="none", tool_call_id="c"),
        Message(role="user", content="Find Ulm"),
        Message(role="assistant", content="gold"),
    )
    rows = [
        Row(id="a", group="a", task="t", messages=history, tools=TOOLS, key=(Call(name="find", arguments='{"city": "Ulm"}'),)),
        chat(1, "Thanks", "Welcome", task="t", tools=TOOLS, key=(NoCall(),)),
        chat(2, "Find Rom", "gold", task="t", tools=TOOLS, key=(Call(name="find", arguments='{"city": "Rom"}'),)),
    ]  # fmt: skip

    def play(body):
        if "Thanks" in asked(body):
            return says("You are welcome.")
        return says(
            None, "tool_calls", tool_calls=[{"id": "n", "function": {"name": "find", "arguments": '{ "city":"Ulm"}'}}]
        )

    with Fake(play) as server:
        _, traced, card = trace(tmp_path, rows, server.url, {"t": Task(type="tools")})
    assert [row.origin for row in traced] == ["teacher", "teacher", "gold"]
    assert traced[0].messages[-1].tool_calls[0].arguments == '{ "city":"Ulm"}' and not traced[0].answer
    assert card["samples_dropped"] == {"wrong call": 1}
    sent = next(body for body in bodies(server) if asked(body) == "Find Ulm")
    assert sent["tools"] == json.loads(TOOLS)
    assert sent["messages"][1]["tool_calls"][0]["function"]["arguments"] == call.arguments, "text, as the API wants it"


def test_limits_can_be_set_for_any_task(tmp_path):
    with Fake(says(LIST)) as server:
        for name, limits in {
            "too long": {"max_words": 3},
            "line break": {"line_breaks": False},
            "markup": {"markup": False},
        }.items():
            _, _, card = trace(
                tmp_path, [chat(0, "Hi", "Hello")], server.url, name=name, limits=Limits(**limits), min_acceptance=0
            )
            assert card["samples_dropped"] == {name: 1}
    assert len(server.seen) == 1


# Votes and judges


def test_the_most_frequent_answer_wins_the_vote(tmp_path):
    texts = iter(["It is 7.", "So 42.", "Hence 42.", "Well, 7 and 42."])
    rows = [chat(0, "6 times 7?", task="t")]
    with Fake(lambda body: says(next(texts))) as server:
        _, traced, _ = trace(tmp_path, rows, server.url, {"t": Task(type="reasoning")}, samples=4, vote=True)
    assert len(server.seen) == 4 and traced[0].answer == "So 42."
    with pytest.raises(ConfigError, match="vote"):
        OpenAI(vote=True, samples=2)


def test_a_judge_says_yes_or_no(tmp_path):
    def play(body):
        if body["messages"][0]["content"].startswith("You decide"):
            word = {"good": "Yes.", "bad": "no", "odd": "Perhaps"}[asked(body).split("judge:\n")[1].split()[0]]
            return says(word, usage={"prompt_tokens": 5, "completion_tokens": 1})
        return says(asked(body).split()[-1], usage={"prompt_tokens": 3, "completion_tokens": 1})

    rows = [chat(number, f"Say {word}", "gold", task="t") for number, word in enumerate(["good", "bad", "odd"])]
    with Fake(play) as server:
        metrics, traced, card = trace(tmp_path, rows, server.url, {"t": Task(judge="It must rhyme.")}, accept="judge")
        trace(tmp_path, rows, server.url, {"t": Task(judge="It must rhyme.")}, name="again", accept="judge")
    assert [row.answer for row in traced] == ["good", "gold", "gold"]
    assert card["samples_dropped"] == {"judge: no": 1, "judge: unreadable": 1} and card["accepted_by"] == {"judge": 1}
    assert metrics["requests"] == 6 == len(server.seen) and metrics["prompt_tokens"] == 24
    assert any("It must rhyme." in body["messages"][0]["content"] for body in bodies(server))


# Too little is an error


def test_nothing_accepted_fails_and_says_why_with_examples(tmp_path):
    rows = [chat(number, f"Q{number}", "gold") for number in range(3)]
    with Fake(says(None, "length", reasoning_content="Let me think.")) as server:
        with pytest.raises(DataError) as caught:
            trace(tmp_path, rows, server.url)
        told = str(caught.value)
        assert "3 x only reasoning" in told and "Let me think." in told and "max_tokens (256 now)" in told
        _, traced, _ = trace(tmp_path, rows, server.url, name="anyway", min_acceptance=0)
    assert len(server.seen) == 3, "everything is kept"
    assert {row.origin for row in traced} == {"gold"}


def test_the_smallest_share_is_a_setting(tmp_path):
    rows = [chat(number, f"Q{number}", "gold") for number in range(10)]
    with Fake(lambda body: says("Well." if "Q7" in asked(body) else "")) as server:
        trace(tmp_path, rows, server.url, name="one")
        with pytest.raises(DataError, match="1 of 10 prompts"):
            trace(tmp_path, rows, server.url, name="more", min_acceptance=0.2)


def test_one_refused_prompt_is_counted_and_a_refusing_endpoint_is_an_error(tmp_path):
    rows = [chat(number, f"Q{number}", "gold") for number in range(30)]

    def play(body):
        return reply(400, {"error": "too long for the context"}) if "Q7" in asked(body) else says("Well.")

    with Fake(play) as server:
        _, traced, card = trace(tmp_path, rows, server.url)
    assert card["samples_dropped"] == {"refused": 1} and card["teacher"] == 29
    with Fake(reply(400, {"error": "model not loaded"})) as server, pytest.raises(EndpointError, match="not loaded"):
        trace(tmp_path, rows, server.url, name="none")
    assert len(server.seen) < 15, "it is not asked thirty times"


def test_parameters_that_were_not_taken_are_in_the_card(tmp_path):
    def play(body):
        told = {"error": {"message": "Unsupported value: 'temperature'", "param": "temperature"}}
        return reply(400, told) if "temperature" in body else says("Well.")

    with Fake(play) as server:
        _, _, card = trace(tmp_path, [chat(0, "Hi", "Hello")], server.url)
        _, _, again = trace(tmp_path, [chat(0, "Hi", "Hello")], server.url, name="again")
    assert card["parameters_not_taken"] == ["temperature"] == again["parameters_not_taken"] and len(server.seen) == 2


# Paid once


def test_filters_ratios_prices_and_ids_pay_for_nothing_twice(tmp_path):
    rows = [chat(number, f"Q{number}", "gold") for number in range(6)]
    renamed = [row.model_copy(update={"id": f"new-{row.id}", "group": "x"}) for row in rows]
    with Fake(says("Well, this is an answer.")) as server:
        trace(tmp_path, rows, server.url, name="some", gold_ratio=0.5)
        assert len(server.seen) == 3
        trace(tmp_path, rows, server.url, name="all")
        assert len(server.seen) == 6
        trace(tmp_path, rows, server.url + "/", name="slash", limits=Limits(max_words=9), min_acceptance=0.5)
        trace(tmp_path, rows, server.url, name="prices", prices=Prices(input=1.0), gold_ratio=0.2)
        _, traced, _ = trace(tmp_path, renamed[::-1], server.url, name="ids")
        assert len(server.seen) == 6 and {row.origin for row in traced} == {"teacher"}
        trace(tmp_path, rows, server.url, name="seeds", model="other")
        assert len(server.seen) == 12, "another model is another teacher"


def test_rows_with_the_same_prompt_are_asked_once_also_at_the_same_time(tmp_path):
    rows = [chat(number, "Q", f"gold {number}") for number in range(6)]
    with Fake(reply(200, says("Well.")[1], delay=0.1)) as server:
        metrics, traced, _ = trace(tmp_path, rows, server.url, concurrency=6)
    assert len(server.seen) == 1 == metrics["requests"] and [row.answer for row in traced] == ["Well."] * 6


# The budget


def test_a_reached_cap_fails_with_numbers_and_a_raised_one_goes_on(tmp_path):
    rows = [chat(number, f"Q{number}", "gold") for number in range(10)]
    with Fake(says("Well.", usage={"prompt_tokens": 10, "completion_tokens": 5})) as server:
        with pytest.raises(ConfigError) as caught:
            trace(tmp_path, rows, server.url, name="capped", budget=Budget(requests=4))
        told = str(caught.value)
        assert "4 of 10 prompts" in told and "4 requests, 60 tokens" in told and "about 10 requests, 150 tokens" in told
        assert len(server.seen) == 4 and not caught.value.retryable
        metrics, _, card = trace(tmp_path, rows, server.url, name="raised", budget=Budget(requests=10))
    assert len(server.seen) == 10 and card["complete"] and metrics["complete"] == 1 and metrics["reused"] == 4


def test_an_incomplete_artifact_says_so(tmp_path, caplog):
    rows = [chat(number, f"Q{number}", "gold") for number in range(10)]
    with Fake(says("Well.")) as server:
        settings = {"budget": Budget(requests=4), "when_capped": "publish"}
        metrics, traced, card = trace(tmp_path, rows, server.url, **settings)
    used = json.loads((tmp_path / "out" / "usage.json").read_text())
    assert metrics["complete"] == 0 and card["complete"] is False and used["complete"] is False
    assert card["prompts_not_asked_for_budget"] == 6 and card["teacher"] == 4 and len(traced) == 10
    assert any(record.levelno == logging.WARNING and "incomplete" in record.message for record in caplog.records)


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("usage", [{"prompt_tokens": 20, "completion_tokens": 40}, None])
def test_no_cap_is_ever_passed(tmp_path, concurrency, usage):
    rows = [chat(number, f"Q{number}", "gold") for number in range(40)]
    caps = {"budget": Budget(tokens=2000), "when_capped": "publish", "max_tokens": 50, "concurrency": concurrency}
    with Fake(says("Well.", usage=usage)) as server:
        metrics, _, card = trace(tmp_path, rows, server.url, **caps)
    assert metrics["prompt_tokens"] + metrics["completion_tokens"] <= 2000 and not card["complete"]
    assert 15 <= len(server.seen) <= 33, "and most of it is used"


def test_money_is_a_cap_too_and_needs_prices(tmp_path):
    rows = [chat(number, f"Q{number}", "gold") for number in range(40)]
    with Fake(says("Well.", usage={"prompt_tokens": 20, "completion_tokens": 40})) as server:
        more = {"budget": Budget(money=0.001), "prices": Prices(input=1.0, output=1.0), "when_capped": "publish"}
        metrics, _, card = trace(tmp_path, rows, server.url, max_tokens=50, **more)
    assert 0 < metrics["cost"] <= 0.001 and not card["complete"]
    with pytest.raises(ConfigError, match="prices"):
        OpenAI(budget=Budget(money=1))


def test_a_cap_below_one_request_says_so(tmp_path):
    with Fake(says("Well.")) as server, pytest.raises(ConfigError, match="next request may take"):
        trace(tmp_path, [chat(0, "Hi", "Hello")], server.url, budget=Budget(tokens=20), when_capped="publish")
    assert not server.seen
