import asyncio
import logging
import time

import pytest

from tasks.shared.engines import openai_endpoint as module
from tasks.shared.engines.chat_errors import retry_after
from tasks.shared.engines.endpoint_settings import read_key
from tasks.shared.engines.openai_endpoint import connect, for_each
from tasks.shared.errors import EndpointError
from tests.fake_endpoint import Fake, reply

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(module, "_backoff", lambda state: 0.01)


def ask(url, *, key=None, timeout=5.0, attempts=3):
    async def go():
        async with connect(url, "m", key, timeout=timeout, max_attempts=attempts, concurrency=2) as endpoint:
            return await endpoint.chat([{"role": "user", "content": "Hi"}], {"max_tokens": 3, "seed": 5})

    return asyncio.run(go())


def refusal(*replies, **options):
    with Fake(*replies) as server, pytest.raises(EndpointError) as caught:
        ask(server.url, **options)
    return str(caught.value), len(server.seen)


def test_a_completion_and_what_was_sent(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY + "\n")
    with Fake(reply()) as server:
        completion = ask(server.url + "/", key=read_key("TEACHER_KEY"))
    assert (completion.text, completion.finish_reason, completion.attempts) == ("Hello.", "stop", 1)
    assert (completion.prompt_tokens, completion.completion_tokens) == (7, 2)
    path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body == {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "seed": 5}


def test_a_query_stays_in_requests_and_out_of_messages():
    with Fake(reply(404)) as server, pytest.raises(EndpointError) as caught:
        ask(server.url + "?api-version=2")
    assert server.seen[0][0] == "/v1/chat/completions?api-version=2"
    assert "api-version" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 302])
def test_a_refusal_is_final(status):
    message, requests = refusal(reply(status, {"error": "no such thing"}))
    assert requests == 1
    assert f"status {status}" in message and "no such thing" in message and "/v1/chat/completions" in message


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_passing_failure_is_tried_again(status):
    with Fake(reply(status, b"busy"), reply(status, b"busy"), reply()) as server:
        assert ask(server.url).attempts == 3


@pytest.mark.parametrize("status", [429, 500])
def test_attempts_are_bounded(status):
    message, requests = refusal(reply(status, b"busy"), attempts=4)
    assert requests == 4
    assert "4 attempts" in message and "busy" in message


def test_retry_after_is_honored():
    begun = time.monotonic()
    with Fake(reply(429, b"", {"Retry-After": "1"}), reply()) as server:
        ask(server.url)
    assert time.monotonic() - begun >= 1.0


def test_a_wait_beyond_the_limit_is_reported_at_once():
    message, requests = refusal(reply(429, b"", {"Retry-After": "3600"}))
    assert requests == 1 and "3600 s" in message


def test_retry_after_forms():
    assert retry_after("2") == 2.0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after("soon") is None and retry_after("") is None


@pytest.mark.parametrize(
    "body",
    [
        b"<!doctype html><html>Sign in</html>",
        b"[]",
        b"Bad gateway",
        {"id": "x"},
        {"choices": [{"finish_reason": "stop"}]},
    ],
)
def test_what_is_no_completion_is_refused_at_once(body):
    message, requests = refusal(reply(200, body))
    assert requests == 1 and "not a chat completion" in message


def test_absent_usage_and_content_are_zero_and_empty():
    with Fake(reply(200, {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]})) as server:
        completion = ask(server.url)
    assert (completion.text, completion.prompt_tokens, completion.finish_reason) == ("", 0, "content_filter")


def test_a_hang_ends_at_the_time_limit():
    begun = time.monotonic()
    message, requests = refusal(reply(delay=3.0), timeout=0.2, attempts=2)
    assert time.monotonic() - begun < 2.5
    assert requests == 2 and "0.2 s" in message


def test_a_refused_connection_is_bounded_and_named():
    with Fake(reply()) as server:
        url = server.url
    with pytest.raises(EndpointError, match="connection failed") as caught:
        ask(url, attempts=2)
    assert "2 attempts" in str(caught.value) and url in str(caught.value)


def test_a_body_cut_short_by_the_server_is_tried_again():
    with Fake(reply(200, b'{"choi', {"Content-Length": "100"}), reply()) as server:
        assert ask(server.url).attempts == 2


def test_the_key_is_shown_nowhere(monkeypatch, caplog):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    key = read_key("TEACHER_KEY")
    caplog.set_level(logging.DEBUG)
    echo = {"error": f"bad key {KEY}"}
    texts = [repr(key)]
    for replies in ([reply(401, echo)], [reply(500, echo)], [reply(200, {"choices": KEY})], [reply(429, KEY.encode())]):
        with Fake(*replies) as server, pytest.raises(EndpointError) as caught:
            ask(server.url, key=key, attempts=2)
        chain = [caught.value, caught.value.__cause__, caught.value.__context__]
        texts += [text for error in chain for text in (str(error), repr(error), repr(vars(error) if error else ""))]
    texts.append(caplog.text)
    assert not [text for text in texts if KEY in text]
    assert "(key)" in "".join(texts)


def test_concurrency_is_bounded_and_used():
    async def go(url):
        async with connect(url, "m", None, timeout=5, max_attempts=1, concurrency=3) as endpoint:

            async def one(_):
                await endpoint.chat([{"role": "user", "content": "Hi"}], {})

            await for_each(range(9), one, 3)

    with Fake(reply(delay=0.05)) as server:
        asyncio.run(go(server.url))
    assert len(server.seen) == 9
    assert server.most_busy == 3


def test_the_first_error_stops_all_work():
    done = []

    async def work(item):
        if item == 2:
            raise EndpointError("there", "no")
        await asyncio.sleep(0.01)
        done.append(item)

    with pytest.raises(EndpointError):
        asyncio.run(for_each(range(100), work, 2))
    assert len(done) < 5
