"""Too little is an error that says why, and nothing is paid twice."""

import pytest

from tasks.shared.engines import openai_endpoint
from tasks.shared.errors import DataError, EndpointError
from tasks.shared.formats.targets import Facts
from tasks.shared.formats.tasks import Task
from tasks.traces.budget import Prices
from tasks.traces.settings import Limits
from tests.fake_endpoint import Fake, reply, says
from tests.traced_rows import asked, chat, trace


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(openai_endpoint, "_backoff", lambda state: 0.01)


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


def test_other_ids_choose_the_same_rows_and_the_same_worked_examples(tmp_path):
    fact = (Facts(groups=(("45 days",),)),)
    gold = "returns\nIt takes 45 days."
    rows = [
        chat(number, f"Q{number}", gold, key=fact, task="t", evidence=f"a{number}", tags={"kind": "faq"})
        for number in range(12)
    ]
    renamed = [row.model_copy(update={"id": f"{97 * number % 13}-new"}) for number, row in enumerate(rows)]
    settings = {"gold_ratio": 0.5, "article_in_prompt": False}
    tasks = {"t": Task(type="qa", layout="first_line")}
    with Fake(says("It takes 45 days.")) as server:
        trace(tmp_path, rows, server.url, tasks, **settings)
        assert len(server.seen) == 6 and len(server.seen[0][2]["messages"]) == 5
        trace(tmp_path, renamed, server.url, tasks, name="renamed", **settings)
    assert len(server.seen) == 6
