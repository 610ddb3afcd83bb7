"""Streamed answers from an OpenAI-compatible server, with arrival times of all pieces."""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tasks.evaluate.models_under_test.model_under_test import Prompt
from tasks.shared.engines.loopback_client import ServerClient
from tasks.shared.errors import EndpointError


@dataclass(frozen=True)
class Streamed:
    """Timings of one answer.

    arrivals: seconds from the request to each piece, at least the first and the last token.  end_s: seconds until the answer was complete.
    tokens, prompt_tokens: counted by the engine.  A piece is one token, or several if a single one is not a whole character.
    """

    arrivals: Sequence[float]
    end_s: float
    tokens: int
    prompt_tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Decode speed: tokens after the first, over the time from the first to the last."""
        return (self.tokens - 1) / (self.arrivals[-1] - self.arrivals[0])


def stream_answer(url: str, model: str, prompt: Prompt, tokens: int, limit: float, started: float = 0.0) -> Streamed:
    """Request exactly `tokens` greedy tokens, without prompt caching.

    The server renders the template, tokenizes and detokenizes, so the times include that.
    url: ends in /v1.  limit: longest wait for new data, seconds.  started: time.perf_counter() at time zero; 0 for now.
    Raises EndpointError for a refusal, no answer, or an answer of another length.
    """
    body: dict[str, Any] = {
        "model": model, "messages": prompt.messages, "max_tokens": tokens, "temperature": 0.0, "stream": True,
        "stream_options": {"include_usage": True}, "ignore_eos": True,
        "cache_prompt": False, "reasoning_format": "none",  # for llama.cpp; vLLM ignores them
        "min_tokens": tokens, "skip_special_tokens": False,  # for vLLM; llama.cpp ignores them
    }  # fmt: skip
    if prompt.tools:  # in the prompt, but no call is parsed, which would hold pieces back
        body |= {"tools": json.loads(prompt.tools), "tool_choice": "none"}
    started = started or time.perf_counter()
    events: list[tuple[float, dict[str, Any]]] = []
    for event in ServerClient(url).stream("/v1/chat/completions", body, limit, f"{tokens} streamed tokens"):
        events.append((time.perf_counter() - started, event))
    end_s, arrivals = time.perf_counter() - started, arrivals_of(events)
    usage: dict[str, int] = next((event["usage"] for _, event in reversed(events) if event.get("usage")), {})
    counted = int(usage.get("completion_tokens", 0))
    if counted != tokens or len(arrivals) < 2:
        got = f"{counted} tokens in {len(arrivals)} pieces"
        raise EndpointError(url, got, f"{tokens} tokens, streamed one by one, and their number in `usage`")
    return Streamed(arrivals, end_s, counted, int(usage.get("prompt_tokens", 0)))


def arrivals_of(events: Sequence[tuple[float, dict[str, Any]]]) -> list[float]:
    """Return the arrival time of each piece; empty for an incomplete stream.

    The first event carries the first token, and the event with a finish reason the last one, whether or not they contain text; in
    between, only text marks a token.
    """
    choices = [(moment, choice) for moment, event in events for choice in event.get("choices", ())]
    pieces = [moment for moment, choice in choices if _text(choice.get("delta") or {})]
    ends = [moment for moment, choice in choices if choice.get("finish_reason")]
    return [choices[0][0], *pieces[1:-1], ends[-1]] if ends else []


def stream_together(url: str, model: str, prompt: Prompt, tokens: int, limit: float, streams: int) -> list[Streamed]:
    """Send the same prompt `streams` times at once, all times from one start."""
    started = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        futures = [pool.submit(stream_answer, url, model, prompt, tokens, limit, started) for _ in range(streams)]
        return [future.result() for future in futures]


def joint_speed(answers: Sequence[Streamed]) -> float:
    """Return total tokens per second of all streams while all of them decode.

    Starts at the last stream's first piece; earlier time is prompt processing, which the end-to-end time includes.
    """
    begin, end = max(answer.arrivals[0] for answer in answers), max(answer.arrivals[-1] for answer in answers)
    tokens = 0.0
    for answer in answers:
        after = [moment for moment in answer.arrivals[1:] if moment > begin]
        tokens += (answer.tokens - 1) * len(after) / (len(answer.arrivals) - 1)
    return tokens / (end - begin)


def _text(delta: dict[str, Any]) -> Any:
    """Text in a delta; reasoning models use other field names for their reasoning."""
    return delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""
