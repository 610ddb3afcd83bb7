"""Completions of endpoints that stream although no stream was requested."""

import json
from typing import Any

from tasks.shared.engines.chat_errors import Problem

DONE = "[DONE]"
TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


def join_stream(content: bytes) -> dict[str, Any] | Problem:
    """Join server-sent events to one chat completion; a Problem if they are cut off."""
    lines = [line[5:].strip() for line in content.decode("utf-8", "replace").splitlines() if line.startswith("data:")]
    try:
        events = _objects([json.loads(line) for line in lines if line != DONE])
    except ValueError:
        return Problem(200, "not a chat completion: a stream with a broken event", passes=True)
    if error := next((event for event in events if event.get("error")), None):
        return error
    message: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    choices = [choice for event in events for choice in _objects(event.get("choices"))]
    for choice in choices:
        for delta in _objects([choice.get("delta") or choice.get("message")]):
            _add(message, calls, delta)
    finish = next((choice["finish_reason"] for choice in reversed(choices) if choice.get("finish_reason")), None)
    if DONE not in lines and finish is None:
        return Problem(200, "not a chat completion: a stream that ends early", passes=True)
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    usage = next((event["usage"] for event in reversed(events) if event.get("usage")), None)
    return {"choices": [{"message": {"content": None, **message}, "finish_reason": finish}], "usage": usage}


def _add(message: dict[str, Any], calls: dict[int, dict[str, Any]], delta: dict[str, Any]) -> None:
    for name in TEXTS:
        if isinstance(delta.get(name), str):
            message[name] = message.get(name, "") + delta[name]
    for entry in _objects(delta.get("tool_calls")):
        index = entry.get("index")
        place = index if isinstance(index, int) else len(calls)
        call = calls.setdefault(place, {"id": "", "function": {"name": "", "arguments": ""}})
        call["id"] = entry.get("id") or call["id"]
        for function in _objects([entry.get("function")]):
            for name in ("name", "arguments"):
                call["function"][name] += function[name] if isinstance(function.get(name), str) else ""


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
