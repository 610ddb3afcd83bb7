"""Streamed answers of an OpenAI-compatible server: arrival times and speeds."""

from typing import Any

import pytest

from tasks.evaluate.models_under_test.model_under_test import Prompt
from tasks.evaluate.timing.streams import Streamed, arrivals_of, joint_speed, stream_answer, stream_together
from tasks.shared.errors import EndpointError
from tests.fake_vllm import EACH_S, FIRST_S, serving

ASKED = Prompt([{"role": "user", "content": "How long?"}])


def test_speed_counts_the_tokens_after_the_first() -> None:
    answer = Streamed([0.5, 0.7, 1.0, 1.5], end_s=1.6, tokens=11, prompt_tokens=4)
    assert answer.tokens_per_second == pytest.approx(10.0), "whether a piece is a token or several"


def test_together_only_the_time_counts_in_which_all_decode() -> None:
    first = Streamed([1.0, 2.0, 3.0, 4.0], 4.0, 4, 4)
    last = Streamed([2.0, 3.0, 4.0, 5.0], 5.0, 4, 4)
    assert joint_speed([first, last]) == pytest.approx((2 + 3) / 3), "after the last stream's first piece"
    assert joint_speed([first]) == pytest.approx(first.tokens_per_second)
    assert joint_speed([first, first]) == pytest.approx(2 * first.tokens_per_second)


def test_an_answer_is_asked_for_in_full_and_uncached_and_timed_from_the_request() -> None:
    with serving() as server:
        answer = stream_answer(server.url, "model", ASKED, 5, 5)
    assert (answer.tokens, answer.prompt_tokens, len(answer.arrivals)) == (5, 7, 5)
    assert FIRST_S <= answer.arrivals[0] < answer.arrivals[-1] <= answer.end_s
    assert answer.arrivals[-1] - answer.arrivals[0] >= 4 * EACH_S
    (body,) = server.asked
    assert (
        body["messages"] == ASKED.messages
        and "tools" not in body
        and body["max_tokens"] == 5
        and body["ignore_eos"]
        and not body["cache_prompt"]
    )


def test_tools_are_sent_and_no_call_is_parsed() -> None:
    with serving() as server:
        stream_answer(server.url, "model", Prompt(ASKED.messages, '[{"type": "function"}]'), 5, 5)
    (body,) = server.asked
    assert body["tools"] == [{"type": "function"}] and body["tool_choice"] == "none"


def test_tokens_without_a_text_of_their_own_count_at_both_ends() -> None:
    def event(moment: float, text: str, reason: str | None = None) -> tuple[float, dict[str, Any]]:
        return moment, {"choices": [{"delta": {"content": text}, "finish_reason": reason}]}

    plain = [event(1, ""), event(1, "a"), event(2, "b"), event(3, "c"), event(3, "", "length"), (3.1, {"choices": []})]
    assert arrivals_of(plain) == [1, 2, 3], "what opens and what ends the stream are no pieces beside their tokens"
    assert arrivals_of([event(1, ""), event(2, "b"), event(4, "", "length")]) == [1, 4]
    assert arrivals_of([event(1, ""), event(4, "", "length")]) == [1, 4]
    assert arrivals_of([event(1, "a"), event(2, "b")]) == arrivals_of([]) == [], "a stream that was cut off"


def test_thoughts_are_text_too() -> None:
    with serving("thinks") as server:
        assert len(stream_answer(server.url, "model", ASKED, 4, 5).arrivals) == 4


def test_streams_run_at_once() -> None:
    with serving() as server:
        alone = stream_answer(server.url, "model", ASKED, 12, 5)
        answers = stream_together(server.url, "model", ASKED, 12, 5, 4)
    assert len(answers) == 4
    assert max(answer.end_s for answer in answers) < 3 * alone.end_s, (
        "one after the other they would take four times as long"
    )
    assert joint_speed(answers) > 1.5 * alone.tokens_per_second


@pytest.mark.parametrize(("fault", "said"), [("short", "4 tokens"), ("refuses", "400: .*too large")])
def test_another_length_and_a_refusal_are_no_answer(fault: str, said: str) -> None:
    with serving(fault) as server, pytest.raises(EndpointError, match=said):
        stream_answer(server.url, "model", ASKED, 5, 5)


def test_nobody_there_is_an_error() -> None:
    with pytest.raises(EndpointError, match="no answer: .*refused"):
        stream_answer("http://127.0.0.1:9/v1", "model", ASKED, 5, 5)
