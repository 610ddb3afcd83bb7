"""Answers of an OpenAI-compatible server, streamed, with the time of every piece; and what those times come to."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tasks.evaluate.models_under_test.model_under_test import Messages
from tasks.shared.engines.client import ServerClient
from tasks.shared.errors import EndpointError


@dataclass(frozen=True)
class Streamed:
    """One answer.  arrivals: seconds from the request to each piece, the first and the last token at least.  end_s: until all was there.

    tokens, prompt_tokens: as the engine counts them.  A piece is a token, or several where the text of one alone is no character.
    """

    arrivals: Sequence[float]
    end_s: float
    tokens: int
    prompt_tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Decode speed: the tokens after the first, over the time between the first and the last."""
        return (self.tokens - 1) / (self.arrivals[-1] - self.arrivals[0])


def stream_answer(
    url: str, model: str, messages: Messages, tokens: int, limit: float, started: float = 0.0
) -> Streamed:
    """Ask for exactly `tokens` tokens, greedy, the prompt read anew.  The server renders, tokenizes and detokenizes: that is in the times.

    url: ends in /v1.  limit: seconds without news.  started: time.perf_counter() that times count from; 0: this call.
    Raises EndpointError for a refusal, no answer, or an answer of another length.
    """
    body = {
        "model": model, "messages": messages, "max_tokens": tokens, "temperature": 0.0, "stream": True,
        "stream_options": {"include_usage": True}, "ignore_eos": True,
        "cache_prompt": False, "reasoning_format": "none",  # llama.cpp's; vLLM ignores them
        "min_tokens": tokens, "skip_special_tokens": False,  # vLLM's; llama.cpp ignores them
    }  # fmt: skip
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
    """When each piece came, from the stream's events with their times; none for a stream that was cut off.

    The first event comes with the first token and the one that tells why it ends with the last, whether or not these have a
    text of their own; in between only text tells of a token.
    """
    choices = [(moment, choice) for moment, event in events for choice in event.get("choices", ())]
    pieces = [moment for moment, choice in choices if _text(choice.get("delta") or {})]
    ends = [moment for moment, choice in choices if choice.get("finish_reason")]
    return [choices[0][0], *pieces[1:-1], ends[-1]] if ends else []


def stream_together(
    url: str, model: str, messages: Messages, tokens: int, limit: float, streams: int
) -> list[Streamed]:
    """The same question `streams` times at once, all times from one start."""
    started = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        asked = [pool.submit(stream_answer, url, model, messages, tokens, limit, started) for _ in range(streams)]
        return [future.result() for future in asked]


def joint_speed(answers: Sequence[Streamed]) -> float:
    """Tokens per second of all streams together while all of them decode: from the last stream's first piece on.

    What comes before is the reading of prompts, which is in the end-to-end time.
    """
    begin, end = max(answer.arrivals[0] for answer in answers), max(answer.arrivals[-1] for answer in answers)
    tokens = 0.0
    for answer in answers:
        after = [moment for moment in answer.arrivals[1:] if moment > begin]
        tokens += (answer.tokens - 1) * len(after) / (len(answer.arrivals) - 1)
    return tokens / (end - begin)


def _text(delta: dict[str, Any]) -> Any:
    """The piece of text in a delta; a reasoning model's thoughts come under another name."""
    return delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""
