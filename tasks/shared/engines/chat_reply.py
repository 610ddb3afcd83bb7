"""Reader of an endpoint's response: a completion, or the reason why there is none."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.shared.engines.chat_errors import Problem, find_error
from tasks.shared.engines.chat_stream import join_stream
from tasks.shared.formats.rows import ToolCall

FINISH = {
    "stop": "stop|eos|eos_token|end_turn|stop_sequence|stop_str|stop_token|end|complete|completed|finish|finished|normal|done|eot|"
    "end_of_turn|end_of_text|success|matched_stop|eos_found",
    "length": "length|max_tokens|max_length|max_output_tokens|max_new_tokens|model_length|token_limit|incomplete|context_length|"
    "model_context_window_exceeded",
    "content_filter": "content_filter|content_filtered|safety|recitation|blocklist|prohibited_content|spii|refusal|sensitive|"
    "guardrail_intervened",
    "tool_calls": "tool_calls|tool_call|tool_use|function_call",
}
"""Finish reasons of endpoints by the word that OpenAI has for them."""
_FINISH = {word: name for name, words in FINISH.items() for word in words.split("|")}
_SILENT = frozenset({"", "null", "none", "unknown", "other", "unspecified", "finish_reason_unspecified"})
_BROKEN = frozenset({"error", "abort", "aborted", "cancelled", "canceled", "malformed_function_call"})
"""Finish reasons of answers that the endpoint broke off."""
SURROGATE = re.compile("[\ud800-\udfff]")
"""Halves of a character, which endpoints send when a token limit cuts an emoji; UTF-8 cannot hold them."""


@dataclass(frozen=True)
class Completion:
    """Answer to one request.

    finish_reason: "stop", "length", "content_filter", "tool_calls", or another word of the endpoint in lower case.
    prompt_tokens, completion_tokens: 0 if the endpoint reports no usage.
    attempts: requests sent.  seconds: total time, retries included.
    reasoning: reasoning that the endpoint returns separately from the answer.
    dropped: sampling parameters that the endpoint does not take, so that its own defaults applied.
    """

    text: str
    finish_reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 1
    seconds: float = 0.0
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    dropped: tuple[str, ...] = ()


def read_reply(content: bytes, room: int = 0) -> Completion | Problem:
    """Read the body of a response with status 200.

    room: most tokens that were requested; tells a full answer from a cut one where the endpoint gives no finish reason.
    Raises nothing.
    """
    try:
        return _read(content, room)
    except RecursionError:
        return Problem(200, "not a chat completion: JSON that is nested too deeply", quote=True)


def _read(content: bytes, room: int) -> Completion | Problem:
    reply = _parse(content)
    if isinstance(reply, Problem):
        return reply
    if (error := find_error(reply)) is not None:
        return error
    choices = reply.get("choices")
    if not isinstance(choices, list):
        return Problem(200, "not a chat completion: no `choices`", quote=True)
    if not choices or not isinstance(choices[0], dict):
        return Problem(200, "not a chat completion: `choices` is empty", passes=True, quote=True)
    return _read_choice(choices[0], reply.get("usage"), room)


def _parse(content: bytes) -> dict[str, Any] | Problem:
    start = content.lstrip(b"\xef\xbb\xbf \t\r\n")[:512]
    if not start:
        return Problem(200, "not a chat completion: an empty body", passes=True)
    if start.startswith(b"<"):
        return Problem(200, "not a chat completion: a web page", quote=True)
    if start.startswith((b"data:", b"event:", b":")):
        return join_stream(content)
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        cut = start.startswith((b"{", b"["))
        return Problem(
            200, f"not a chat completion: {'JSON that is cut off or broken' if cut else 'no JSON'}", passes=cut, quote=True
        )  # fmt: skip
    if isinstance(reply, list) and len(reply) == 1:
        reply = reply[0]
    return reply if isinstance(reply, dict) else Problem(200, "not a chat completion: no JSON object", quote=True)


def _read_choice(choice: Mapping[str, Any], usage: Any, room: int) -> Completion | Problem:
    message = choice.get("message")
    if message is None and isinstance(choice.get("text"), str):
        message = {"content": choice["text"]}
    if not isinstance(message, dict):
        return Problem(200, "not a chat completion: no `choices[0].message`", quote=True)
    word = choice.get("finish_reason")
    word = word.strip().lower() if isinstance(word, str) else ""
    if word in _BROKEN:
        return Problem(200, f"the endpoint broke the answer off (finish_reason {word})", passes=True)
    text, thought = _read_content(message.get("content"))
    thought = thought or _reasoning(message)
    calls = _tool_calls(message)
    used = _count(usage, "completion_tokens", "output_tokens")
    refused = not text and not calls and isinstance(message.get("refusal"), str) and bool(message["refusal"])
    finish = "content_filter" if refused else _finish(word, text, calls, bool(room) and used >= room)
    return Completion(
        _clean(text), finish, _count(usage, "prompt_tokens", "input_tokens"), used, reasoning=_clean(thought), tool_calls=calls
    )  # fmt: skip


def _finish(word: str, text: str, calls: Sequence[ToolCall], full: bool) -> str:
    if word in _SILENT:
        word = "length" if full else "stop"
    word = _FINISH.get(word, word)
    if word == "stop" and calls:
        return "tool_calls"
    return "stop" if word == "tool_calls" and not calls and text else word


def _read_content(content: Any) -> tuple[str, str]:
    """Text and reasoning of a message's content: a string, or a list of parts."""
    if content is None:
        return "", ""
    if isinstance(content, str):
        return content, ""
    parts = content if isinstance(content, list) else [content]
    texts: list[str] = []
    thoughts: list[str] = []
    for part in parts:
        if isinstance(part, dict):
            thinks = str(part.get("type", "")) in ("thinking", "reasoning", "thought")
            inner = next((part[name] for name in ("text", "thinking", "reasoning", "content") if part.get(name)), "")
            (thoughts if thinks else texts).append("".join(_read_content(inner)))
        else:
            texts.append(str(part))
    return "".join(texts), "".join(thoughts)


def _reasoning(message: Mapping[str, Any]) -> str:
    for name in ("reasoning_content", "reasoning", "thinking", "reasoning_details"):
        if message.get(name):
            return "".join(_read_content(message[name]))
    return ""


def _tool_calls(message: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """Tool calls of a message, also of the older `function_call`; arguments become text."""
    found = message.get("tool_calls")
    entries = list(found) if isinstance(found, list) else []
    if not entries and isinstance(message.get("function_call"), dict):
        entries = [{"function": message["function_call"]}]
    calls = []
    for entry in entries:
        function = entry.get("function", entry) if isinstance(entry, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name.strip():
            continue
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        calls.append(ToolCall(id=str(entry.get("id") or ""), name=name, arguments=_clean(text).strip() or "{}"))
    return tuple(calls)


def _count(usage: Any, *names: str) -> int:
    found = next((usage[name] for name in names if usage.get(name)), 0) if isinstance(usage, dict) else 0
    try:
        return max(0, int(found))
    except (TypeError, ValueError, OverflowError):
        return 0


def _clean(text: str) -> str:
    return SURROGATE.sub("\ufffd", text)
