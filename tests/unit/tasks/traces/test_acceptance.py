"""Rows of every kind of task: asked, accepted by their key, form or a judge, and written in their layout."""

import json

import pytest

from tasks.shared.errors import ConfigError, DataError
from tasks.shared.formats.rows import Message, Row, ToolCall
from tasks.shared.formats.targets import Call, Decline, Facts, Json, Label, NoCall, Number, Text
from tasks.shared.formats.tasks import Requests, Task
from tasks.traces.openai import OpenAI
from tasks.traces.reasoning import Reasoning
from tasks.traces.settings import Limits
from tests.fake_endpoint import Fake, says
from tests.traced_rows import asked, bodies, chat, trace

LIST = "Sure! Do this:\n\n- unplug it\n- call 555-0100\n\n**Then** wait."
TOOLS = json.dumps([{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}])


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


def test_a_native_reasoning_with_steps_of_its_own_is_kept_where_no_article_is_the_source(tmp_path):
    rows = [chat(0, "6 times 7?", "gold", key=(Number(value=42),), task="t")]
    with Fake(says("So 42.", reasoning_content="5 times 7 is 35.\n35 plus 7 is 42.")) as server:
        _, traced, card = trace(
            tmp_path, rows, server.url, {"t": Task(type="reasoning")}, reasoning=Reasoning(ask="native")
        )
    assert traced[0].reasoning == "5 times 7 is 35.\n35 plus 7 is 42." and card["with_reasoning"] == 1
    assert server.seen[0][2]["max_tokens"] == Task(type="reasoning").answer_tokens + 150


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
