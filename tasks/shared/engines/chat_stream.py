"""Completions of endpoints that stream although no stream was requested."""

import json
from typing import Any

from tasks.shared.engines.chat_errors import Problem

TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


def join_stream(content: bytes) -> dict[str, Any] | Problem:
    """Join server-sent events to one chat completion; a Problem if they are cut off or hold none."""
    message: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    finish: Any = None
    usage: Any = None
    done = False
    for line in content.decode("utf-8", "replace").splitlines():
        if not line.startswith("data:"):
            continue
        if line[5:].strip() == "[DONE]":
            done = True
            continue
        try:
            event = json.loads(line[5:])
        except ValueError:
            return Problem(200, "not a chat completion: a stream with a broken event", passes=True)
        if not isinstance(event, dict):
            continue
        if event.get("error"):
            return event
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            finish = choice.get("finish_reason") or finish
            _add(message, calls, choice.get("delta") or choice.get("message") or {})
    if not done and finish is None:
        return Problem(200, "not a chat completion: a stream that ends early", passes=True)
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return {"choices": [{"message": {"content": None, **message}, "finish_reason": finish}], "usage": usage}


def _add(message: dict[str, Any], calls: dict[int, dict[str, Any]], delta: dict[str, Any]) -> None:
    for name in TEXTS:
        if isinstance(delta.get(name), str):
            message[name] = message.get(name, "") + delta[name]
    for entry in delta.get("tool_calls") or ():
        function = entry.get("function") or {}
        call = calls.setdefault(int(entry.get("index") or 0), {"id": "", "function": {"name": "", "arguments": ""}})
        call["id"] = entry.get("id") or call["id"]
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""
