"""Turns of a conversation, as OpenAI, ShareGPT, Anthropic, Gemini and transcripts have them."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard

from tasks.curate.reading.bad_rows import BadRow
from tasks.shared.formats.rows import Message, Role, ToolCall
from tasks.shared.text.reasoning import CLOSE, OPEN, split_reasoning

ROLES: Mapping[str, Role] = {
    "system": "system", "developer": "developer", "user": "user", "assistant": "assistant", "tool": "tool",
    "human": "user", "prompter": "user", "customer": "user", "client": "user", "u": "user", "usr": "user", "caller": "user",
    "visitor": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant", "agent": "assistant",
    "ai": "assistant", "bing": "assistant", "bard": "assistant", "claude": "assistant", "s": "assistant", "representative": "assistant",
    "operator": "assistant", "observation": "tool", "function": "tool", "function_response": "tool", "tool_response": "tool",
    "ipython": "tool", "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
"""Role by its name in lower case."""
WHO = ("role", "from", "speaker", "author", "sender")
SAID = ("content", "value", "text", "parts", "message", "utterance")
THOUGHTS = ("reasoning", "reasoning_content", "thinking", "thought")
USED = frozenset(
    {
        *WHO,
        *SAID,
        *THOUGHTS,
        "name",
        "tool_calls",
        "function_call",
        "tool_call_id",
        "weight",
        "learn",
        "refusal",
        "train",
    }
)
SEEN_PARTS = frozenset({"text", "input_text", "output_text", ""})


def is_turns(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    """Return True for a list of turns: objects that say who speaks, and what."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and any(key in turn for key in WHO) for turn in value)
    )


def read_turns(turns: Iterable[Any], counts: Counter[str]) -> list[Message]:
    """Convert turns to messages, verbatim.

    counts: gets remarks on what was taken for something.
    Raises BadRow.
    """
    found: list[Message] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise BadRow("a turn that is not an object", f"turn {number} is {type(turn).__name__}")
        found += _turn(turn, number, counts)
    if not found:
        raise BadRow("no messages", "the list of turns is empty", "delete these rows")
    return found


def _turn(turn: Mapping[str, Any], number: int, counts: Counter[str]) -> Iterator[Message]:
    who = next((key for key in WHO if turn.get(key)), "")
    if not who:
        raise BadRow("a turn without a role", f"turn {number} has {', '.join(turn)}")
    spoken = str(turn[who]).strip().lower()
    role = "assistant" if who == "speaker" and spoken == "system" else ROLES.get(spoken)
    if role is None:
        raise BadRow("an unknown role", f"turn {number}: {turn[who]!r}", f"known roles: {', '.join(ROLES)}")
    said = next((turn[key] for key in SAID if turn.get(key) is not None), None)
    text, calls, results, thoughts = _content(said, number)
    if spoken in {"function_call", "tool_call"}:
        calls, text = [*calls, *_called(text)], ""
    calls += [_call(call, number) for call in turn.get("tool_calls") or ()]
    if turn.get("function_call"):
        calls.append(_call(turn["function_call"], number))
    thoughts = next((str(turn[key]) for key in THOUGHTS if turn.get(key)), thoughts)
    if role == "assistant" and not thoughts and text.lstrip().startswith(OPEN):
        thoughts, text = _thoughts(text)
        counts["text between <think> and </think> taken for reasoning"] += 1
    if not text and turn.get("refusal"):
        text = str(turn["refusal"])
    for key in turn.keys() - USED:
        if turn[key] not in (None, "", [], {}, False):
            counts[f"field {key!r} of messages left out"] += 1
    yield from results
    if text or calls or not results:
        yield Message(
            role=role, content=text, name=str(turn.get("name") or ""), tool_calls=tuple(calls),
            tool_call_id=str(turn.get("tool_call_id") or ""), reasoning=thoughts, learn=_learn(turn, number),
        )  # fmt: skip


def _learn(turn: Mapping[str, Any], number: int) -> bool | None:
    value = next((turn[key] for key in ("weight", "learn", "train") if turn.get(key) is not None), None)
    if value is None:
        return None
    if value not in (0, 1):
        raise BadRow("a message's weight other than 0 or 1", f"turn {number}: {value!r}", "weight: 0 or 1")
    return bool(value)


def _thoughts(text: str) -> tuple[str, str]:
    if CLOSE not in text:
        raise BadRow("an answer that holds only reasoning", "<think> without </think>", "delete these rows")
    return split_reasoning(text)


def _content(said: Any, number: int) -> tuple[str, list[ToolCall], list[Message], str]:
    """Text, tool calls, tool results and reasoning of a turn's content.

    Parts of text are joined by line breaks.
    """
    if said is None or isinstance(said, str):
        return said or "", [], [], ""
    if isinstance(said, bool | int | float):
        return json.dumps(said), [], [], ""
    if isinstance(said, dict):
        said = [said] if {"type", "text"} & said.keys() else said.get("parts", [said])
    if not isinstance(said, list):
        raise BadRow("content that is not text", f"turn {number}: {type(said).__name__}")
    texts: list[str] = []
    calls: list[ToolCall] = []
    results: list[Message] = []
    thoughts: list[str] = []
    for place, part in enumerate(said, start=1):
        kind = str(part.get("type") or "") if isinstance(part, dict) else ""
        if kind == "thinking":
            thoughts.append(str(part.get("thinking") or ""))
        elif kind == "tool_use":
            calls.append(
                _call({"id": part.get("id"), "name": part.get("name"), "arguments": part.get("input")}, number)
            )
        elif kind == "tool_result":
            content = _content(part.get("content"), number)[0]
            results.append(Message(role="tool", content=content, tool_call_id=str(part.get("tool_use_id") or "")))
        else:
            texts.append(_part_text(part, kind, number, place))
    return "\n".join(texts), calls, results, "\n".join(thoughts)


def _part_text(part: Any, kind: str, number: int, place: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and kind in SEEN_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "refusal":
        return str(part.get("refusal") or "")
    raise _unreadable(part, kind, number, place)


def _unreadable(part: Any, kind: str, number: int, place: int) -> BadRow:
    named = kind or (", ".join(part) if isinstance(part, dict) else type(part).__name__)
    for word, name in (("image", "images"), ("audio", "audio"), ("video", "video"), ("file", "files")):
        if word in named or (isinstance(part, dict) and any(word in key for key in part)):
            return BadRow(
                f"{name} in a message",
                f"part {place} of turn {number} is {named}: only text is read",
                "delete these rows",
            )
    return BadRow("a content part that is not text", f"part {place} of turn {number}: {named}")


def _call(call: Any, number: int) -> ToolCall:
    """A tool call in OpenAI's format, old or new; arguments stay JSON text."""
    if not isinstance(call, dict):
        raise BadRow("a tool call that is not an object", f"turn {number}: {call!r:.60}")
    inner: dict[str, Any] = call["function"] if isinstance(call.get("function"), dict) else call
    name = inner.get("name")
    if not isinstance(name, str) or not name.strip():
        raise BadRow("a tool call without a name", f"turn {number}", "name the tool, or delete these rows")
    arguments = inner.get("arguments", inner.get("input", inner.get("parameters")))
    if arguments is None or arguments == "":
        arguments = "{}"
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(id=str(call.get("id") or ""), name=name, arguments=text)


def _called(text: str) -> list[ToolCall]:
    """Tool calls that a ShareGPT turn holds as JSON text."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BadRow("a function call that is not JSON", text[:80]) from error
    return [_call(call, 0) for call in (found if isinstance(found, list) else [found])]
