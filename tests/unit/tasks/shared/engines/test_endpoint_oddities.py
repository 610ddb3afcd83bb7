"""Habits of real endpoints, each played by a server on loopback."""

import asyncio
import gzip
import json
import logging
import socket
import threading
import time
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from pydantic import SecretStr

from tasks.shared.engines import openai_endpoint as module
from tasks.shared.engines.endpoint_settings import EndpointSettings, check_url
from tasks.shared.engines.openai_endpoint import connect
from tasks.shared.errors import ConfigError, EndpointError, RefusedError
from tests.fake_endpoint import GOOD, Fake, reply, says

SAMPLING = {"max_tokens": 30, "temperature": 0.3, "top_p": 0.95, "stop": ["\n", ". "], "seed": 5}
SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(module, "_backoff", lambda state: 0.01)


def ask(url, *, times=1, sampling=SAMPLING, messages=SYSTEM, key=None, tools=(), timeout=5.0, concurrency=1, **more):
    """Completions of `times` requests, one after another or all at once."""

    async def go():
        limits = {"timeout": timeout, "max_attempts": 3, "concurrency": concurrency, **more}
        async with connect(url, "m", key, **limits) as endpoint:
            if concurrency > 1:
                return await asyncio.gather(*(endpoint.chat(messages, sampling, tools) for _ in range(times)))
            return [await endpoint.chat(messages, sampling, tools) for _ in range(times)]

    return asyncio.run(go())


def completion(*replies, **options):
    with Fake(*replies) as server:
        (found,) = ask(server.url, **options)
    return found


def refusal(*replies, path="/v1", **options):
    with Fake(*replies) as server, pytest.raises(EndpointError) as caught:
        ask(server.url.removesuffix("/v1") + path, **options)
    return caught.value, len(server.seen)


def unsupported(*names, text="Unsupported parameter: '{}' is not supported with this model.", status=400, named=True):
    """A server that refuses requests with any of these parameters, one at a time."""

    def play(body):
        found = next((name for name in names if name in body), None)
        if found is None:
            return reply()
        error = {"message": text.format(found), "type": "invalid_request_error", "code": "unsupported_parameter"}
        return reply(status, {"error": error | ({"param": found} if named else {})})

    return play


# Parameters


def test_the_other_length_parameter_is_learned_once():
    with Fake(unsupported("max_tokens")) as server:
        ask(server.url, times=3)
    sent = [body for _, _, body in server.seen]
    assert len(sent) == 4, "one refusal in all"
    assert [body.get("max_completion_tokens") for body in sent] == [None, 30, 30, 30]
    assert not any("max_tokens" in body for body in sent[1:])


def test_requests_under_way_learn_it_together():
    with Fake(unsupported("max_tokens", "temperature")) as server:
        found = ask(server.url, times=8, concurrency=8)
    assert [one.text for one in found] == ["Hello."] * 8
    assert all(one.dropped == ("temperature",) for one in found)


def test_the_length_parameter_is_a_setting():
    with Fake(reply()) as server:
        ask(server.url, length_parameter="max_completion_tokens")
    assert "max_tokens" not in server.seen[0][2]
    error, requests = refusal(unsupported("max_tokens"), length_parameter="max_tokens")
    assert requests == 1 and isinstance(error, RefusedError)


@pytest.mark.parametrize("name", ["temperature", "top_p", "stop", "seed"])
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"named": False},
        {"text": "Unsupported value: '{}' does not support 0.3. Only the default (1) value is supported."},
        {"text": "Unrecognized request argument supplied: {}", "named": False},
        {"text": "property '{}' is unsupported", "named": False},
        {"text": "Argument not supported on this model: {}", "named": False},
        {"text": "`{}` is deprecated for this model.", "named": False},
        {"text": "invalid {}: only 1 is allowed for this model", "named": False},
        {"text": 'Invalid JSON payload received. Unknown name "{}": Cannot find field.', "named": False},
    ],
)
def test_a_refused_parameter_is_left_out_said_and_recorded(name, form, caplog):
    with Fake(unsupported(name, **form)) as server:
        found = ask(server.url, times=2)
    assert len(server.seen) == 3 and name not in server.seen[1][2]
    assert [one.dropped for one in found] == [(name,)] * 2
    assert sum(f"does not take {name}" in line for line in caplog.text.splitlines()) == 1
    assert set(SAMPLING) - {name} < set(server.seen[-1][2]), "the others are still sent"


def test_a_stop_that_the_endpoint_does_not_take_still_ends_the_answer():
    def play(body):
        return unsupported("stop")(body) if "stop" in body else says("One thing. Another thing.", "length")

    found = completion(play)
    assert (found.text, found.finish_reason) == ("One thing", "stop")


def test_pydantic_servers_name_the_extra_field():
    detail = [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": 5}]

    def play(body):
        return reply(422, {"detail": detail}) if "seed" in body else reply()

    assert completion(play).dropped == ("seed",)


def test_of_two_parameters_that_exclude_each_other_top_p_goes():
    text = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."

    def play(body):
        return reply(400, {"error": {"message": text}}) if {"temperature", "top_p"} <= body.keys() else reply()

    assert completion(play).dropped == ("top_p",)


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens is too large: 30. This model supports at most 16 completion tokens.",
        "This model's maximum context length is 16 tokens, however you requested 30 (max_tokens). Please reduce it.",
        "temperature: Input should be less than or equal to 0.2",
        "Invalid 'stop': array too long. Expected an array with maximum length 1.",
    ],
)
def test_a_value_out_of_range_is_an_error_and_no_reason_to_drop_the_parameter(text):
    error, requests = refusal(reply(400, {"error": {"message": text, "param": text.split()[0]}}))
    assert requests == 1 and isinstance(error, RefusedError) and text[:40] in str(error)


def test_a_refusal_inside_a_200_is_learned_from_too():
    def play(body):
        told = {"error": {"code": 400, "message": "Unsupported parameter: 'max_tokens'", "param": "max_tokens"}}
        return reply(200, told) if "max_tokens" in body else reply()

    assert completion(play).text == "Hello."


def test_an_endpoint_that_refuses_both_names_is_an_error():
    error, requests = refusal(unsupported("max_tokens", "max_completion_tokens"))
    assert requests == 2 and "max_completion_tokens" in str(error)


@pytest.mark.parametrize(
    ("role", "text", "wanted"),
    [
        ("system", "System role not supported", [("user", "Be brief.\n\nHi")]),
        ("developer", "Unexpected message role: developer.", [("system", "Be brief."), ("user", "Hi")]),
        ("developer", "messages.0.role: Input should be 'system', 'user', 'assistant' (not 'developer')",
         [("system", "Be brief."), ("user", "Hi")]),
    ],
)  # fmt: skip
def test_a_role_that_the_template_lacks_is_written_otherwise_and_said(role, text, wanted, caplog):
    def play(body):
        refused = any(turn["role"] == role for turn in body["messages"])
        return reply(400, {"error": {"message": text}}) if refused else reply()

    with Fake(play) as server:
        (found,) = ask(server.url, messages=[{**SYSTEM[0], "role": role}, SYSTEM[1]])
    assert [(turn["role"], turn["content"]) for turn in server.seen[-1][2]["messages"]] == wanted
    assert found.dropped == (f"role {role}",) and f"no {role} turns" in caplog.text


@pytest.mark.parametrize("extra", [{"n": 2}, {"stream": True}, {"messages": []}, {"temperature": 1}, {"api_key": "x"}])
def test_extra_fields_must_not_be_those_of_other_settings(extra):
    with pytest.raises(ConfigError, match="extra_body"):
        EndpointSettings(extra_body=extra)


# Finish reasons


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("stop", "stop"), ("eos_token", "stop"), ("end_turn", "stop"), ("eos", "stop"), ("STOP", "stop"), (None, "stop"),
        ("", "stop"), ("stop_sequence", "stop"), ("MAX_TOKENS", "length"), ("length", "length"), ("model_length", "length"),
        ("content_filter", "content_filter"), ("SAFETY", "content_filter"), ("tool_calls", "stop"), ("weary", "weary"),
    ],
)  # fmt: skip
def test_finish_reasons_of_an_answer_with_text(given, wanted):
    assert completion(says(reason=given)).finish_reason == wanted


def test_without_a_finish_reason_a_full_answer_counts_as_cut():
    assert completion(says(reason=None, usage={"completion_tokens": 30})).finish_reason == "length"
    body = {"choices": [{"message": {"content": "Hello."}}]}
    assert completion(reply(body=body)).finish_reason == "stop"


@pytest.mark.parametrize("word", ["error", "abort", "cancelled"])
def test_an_answer_that_the_endpoint_broke_off_is_tried_again(word):
    assert completion(says("Hel", word), says()).text == "Hello."


def test_thoughts_without_an_answer():
    found = completion(says(None, "length", reasoning_content="Well, let me see."))
    assert (found.text, found.finish_reason, found.reasoning) == ("", "length", "Well, let me see.")


def test_a_refusal_field_is_no_answer():
    assert completion(says(None, refusal="I can't do that.")).finish_reason == "content_filter"


# Messages


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": "A", "reasoning_content": "R"}, "A", "R"),
        ({"content": "A", "reasoning": "R"}, "A", "R"),
        ({"content": "A", "reasoning_content": None, "reasoning": "R"}, "A", "R"),
        ({"content": "A", "reasoning_details": [{"type": "reasoning.text", "text": "R"}]}, "A", "R"),
        ({"content": "A", "thinking": "R"}, "A", "R"),
        ({"content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]}, "AB", ""),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "R"}]}, {"type": "text", "text": "A"}]}, "A", "R"),
        ({"content": ["A", "B"]}, "AB", ""),
        ({"content": "half \ud83d"}, "half \ufffd", ""),
        ({"content": None}, "", ""),
    ],
)  # fmt: skip
def test_forms_of_content_and_reasoning(message, text, reasoning):
    found = completion(reply(body={"choices": [{"message": message, "finish_reason": "stop"}]}))
    assert (found.text, found.reasoning) == (text, reasoning)
    found.text.encode()


def test_an_older_server_puts_the_text_beside_the_message():
    assert completion(reply(body={"choices": [{"text": "A", "finish_reason": "stop"}]})).text == "A"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"tool_calls": [{"id": "c1", "function": {"name": "find", "arguments": '{"a": 1}'}}]}, "tool_calls"),
        ({"tool_calls": [{"id": "c1", "function": {"name": "find", "arguments": {"a": 1}}}]}, "stop"),
        ({"tool_calls": [{"id": "c1", "type": "function", "name": "find", "arguments": '{"a": 1}'}]}, None),
        ({"function_call": {"name": "find", "arguments": '{"a": 1}'}}, "function_call"),
    ],
)
def test_tools_are_sent_and_calls_returned(message, reason):
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    with Fake(says(None, reason, **message)) as server:
        (found,) = ask(server.url, tools=tools)
    assert server.seen[0][2]["tools"] == tools
    assert found.finish_reason == "tool_calls"
    assert [(call.name, json.loads(call.arguments)) for call in found.tool_calls] == [("find", {"a": 1})]


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (None, (0, 0)),
        ({"prompt_tokens": None, "completion_tokens": None}, (0, 0)),
        ({"prompt_tokens": 7.0, "completion_tokens": "2"}, (7, 2)),
        ({"input_tokens": 7, "output_tokens": 2}, (7, 2)),
        ({"prompt_tokens": "many"}, (0, 0)),
    ],
)
def test_forms_of_usage(usage, counts):
    found = completion(says(usage=usage))
    assert (found.prompt_tokens, found.completion_tokens) == counts


# Errors


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "upstream is rate-limited", "code": 429}},
        {"error": {"message": "slow down", "code": "429"}},
        {"error": {"message": "Provider returned error", "code": 502, "metadata": {"raw": "bad gateway"}}},
        {"error": "The model is overloaded, try again"},
        {"error": {"type": "overloaded_error", "message": "Overloaded"}},
        {"object": "error", "message": "engine is busy", "code": 503},
        {"choices": [{"error": {"code": 503, "message": "no instance"}, "finish_reason": "error", "message": {}}]},
        [{"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}],
        {"choices": []},
        b'{"choices": [{"message": {"content": "Hel',
        b"",
    ],
)
def test_a_passing_failure_inside_a_200_is_tried_again(body):
    with Fake(reply(200, body), reply()) as server:
        assert ask(server.url)[0].attempts == 2


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"error": {"message": "no such model", "code": 404}}, "no such model"),
        ({"error": {"message": "bad key", "code": 401}}, "api_key_env"),
        ({"object": "error", "message": "too long for the context", "code": 400}, "too long"),
        ({"detail": "Not authenticated"}, "Not authenticated"),
        (b"<!doctype html><html><title>Sign in</title></html>", "Sign in"),
        (b"[" * 100_000, "cut off or broken"),
    ],
)
def test_a_lasting_failure_inside_a_200_is_an_error(body, told):
    error, requests = refusal(reply(200, body))
    assert told in str(error) and "<html" not in str(error)
    assert requests == (3 if isinstance(body, bytes) and body.startswith(b"[") else 1)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (
            429,
            {"error": {"message": "You exceeded your current quota, check your plan.", "code": "insufficient_quota"}},
        ),
        (402, {"error": {"message": "Payment required"}}),
        (501, {"error": "not implemented"}),
    ],
)
def test_what_money_or_code_must_mend_is_not_tried_again(status, body):
    error, requests = refusal(reply(status, body))
    assert requests == 1 and f"status {status}" in str(error)


def test_web_pages_of_a_gateway_are_quoted_without_their_markup():
    page = b"<html><head><style>b {color: red}</style><title>502 Bad Gateway</title></head><body><h1>nginx</h1></body></html>"
    error, requests = refusal(reply(502, page))
    assert requests == 3 and "502 Bad Gateway nginx" in str(error) and "color" not in str(error)


def test_a_stream_that_nobody_asked_for_is_joined():
    def chunk(**delta):
        return b"data: " + json.dumps({"choices": [{"delta": delta, "finish_reason": None}]}).encode() + b"\n\n"

    end = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}\n\n'
    body = b": ping\n\n" + chunk(role="assistant", reasoning_content="R") + chunk(content="Hel") + chunk(content="lo.")
    found = completion(reply(200, body), reply(200, body + end + b"data: [DONE]\n\n"))
    assert (found.text, found.reasoning, found.prompt_tokens, found.attempts) == ("Hello.", "R", 7, 2)


@pytest.mark.parametrize(
    ("header", "least"),
    [
        ({"Retry-After": "1"}, 1.0),
        ({"Retry-After-Ms": "300"}, 0.3),
        ({"Retry-After": lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)}, 0.9),
        ({"Retry-After": "soon"}, 0.0),
        ({"Retry-After": "-5"}, 0.0),
    ],
)
def test_the_pause_that_the_endpoint_asks_for(header, least):
    headers = {name: value() if callable(value) else value for name, value in header.items()}
    begun = time.monotonic()
    completion(reply(429, b"", headers), reply())
    assert least <= time.monotonic() - begun < least + 2.5


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies(coding, pack):
    body = pack(json.dumps(GOOD).encode())
    assert completion(reply(200, body, {"Content-Encoding": coding})).text == "Hello."
    error, _ = refusal(reply(401, pack(b'{"error": "bad key"}'), {"Content-Encoding": coding}))
    assert "bad key" in str(error)


def test_a_body_that_claims_to_be_compressed_is_an_error_of_the_connection():
    error, requests = refusal(reply(200, b"plain", {"Content-Encoding": "gzip"}))
    assert requests == 3 and "connection failed" in str(error)


@pytest.mark.parametrize(
    ("body", "text"), [(b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "Hello."), ([GOOD], "Hello.")]
)
def test_a_byte_order_mark_and_a_list_around_the_completion(body, text):
    assert completion(reply(200, body)).text == text


def test_a_201_is_an_answer_too():
    assert completion(reply(201)).text == "Hello."


def test_an_endless_body_is_not_read(monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    error, requests = refusal(reply(200, b'{"a": "' + b"x" * 5000))
    assert requests == 1 and "MiB" in str(error)


def test_a_slow_trickle_ends_at_the_time_limit():
    """A byte now and then keeps a socket's own timeout from ever ending."""
    listener = socket.create_server(("127.0.0.1", 0))

    def trickle():
        while True:
            try:
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(100):
                    connection.sendall(b" ")
                    time.sleep(0.05)
            except OSError:
                if listener.fileno() < 0:
                    return

    threading.Thread(target=trickle, daemon=True).start()
    begun = time.monotonic()
    with listener, pytest.raises(EndpointError, match="no answer within 0.3 s"):
        ask(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout=0.3)
    assert time.monotonic() - begun < 3.0


# Addresses and keys


@pytest.mark.parametrize(
    "ending", ["/v1/", "/v1//", "/v1/chat/completions", "/v1/chat/completions/", "/v1/completions"]
)
def test_the_route_and_slashes_at_the_end_of_a_url_do_not_matter(ending):
    with Fake(reply()) as server:
        ask(f" {server.url.removesuffix('/v1')}{ending} ")
    assert server.seen[0][0] == "/v1/chat/completions"


def test_a_url_without_a_version_or_a_scheme_gets_advice():
    error, _ = refusal(reply(404, b"not found"), path="")
    assert "/v1" in error.fix and error.where.removesuffix("/chat/completions") in error.fix
    error, _ = refusal(reply(200, b"<html>hello</html>"), path="/")
    assert "/v1" in error.fix
    with pytest.raises(ConfigError) as caught:
        check_url("localhost:8000")
    assert "http://localhost:8000/v1" in caught.value.fix


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (401, {"error": "no key"}, "api_key_env"),
        (403, {"error": "not yours"}, "key may use this model"),
        (404, {"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}, "`model`"),
        (404, b"", "base_url"),
    ],
)
def test_refusals_say_what_to_do_and_never_the_key(status, body, told, caplog):
    caplog.set_level(logging.DEBUG)
    key = SecretStr("sk-secret-123456")
    body = body if isinstance(body, bytes) else body | {"echo": "sk-secret-123456"}
    error, requests = refusal(reply(status, body), key=key)
    assert requests == 1 and told in error.fix
    assert "sk-secret" not in str(error) + caplog.text


def test_a_missing_key_is_told_from_a_wrong_one():
    error, _ = refusal(reply(401, b""))
    assert "wants a key" in error.fix


def test_a_redirect_is_not_followed_but_told():
    error, requests = refusal(reply(307, b"", {"Location": "https://elsewhere.example/v1/chat/completions?key=1"}))
    assert requests == 1 and "elsewhere.example" in str(error) and "key=1" not in str(error)


def test_a_port_without_tls_is_told_at_once():
    with Fake(reply()) as server, pytest.raises(EndpointError) as caught:
        ask(server.url.replace("http://", "https://"))
    assert "http://" in caught.value.fix and "attempts" not in str(caught.value)


@pytest.mark.parametrize("variable", ["ALL_PROXY", "HTTPS_PROXY"])
def test_a_proxy_that_cannot_be_used_is_named(monkeypatch, variable):
    monkeypatch.setenv(variable, "gopher://127.0.0.1:1")
    with pytest.raises(ConfigError, match=variable):
        ask("https://host.invalid/v1")
