"""Caps on what answers may cost: never passed, and never in silence."""

import json
import logging

import pytest

from tasks.shared.errors import ConfigError
from tasks.traces.budget import Prices
from tasks.traces.openai import OpenAI
from tasks.traces.settings import Budget
from tests.fake_endpoint import Fake, says
from tests.traced_rows import chat, trace


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
