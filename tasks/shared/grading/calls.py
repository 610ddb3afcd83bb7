"""Tool calls: those written in an answer's text, and their comparison."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from tasks.shared.formats.rows import ToolCall
from tasks.shared.formats.targets import Call
from tasks.shared.grading.json_values import FENCE, NO_JSON, canonical_json, parse_json

MARK = re.compile(r"<\|?tool_calls?\|?>|\[TOOL_CALLS\]|<\|python_tag\|>", re.IGNORECASE)
"""Marks before calls in JSON: Hermes and Qwen, Granite and Phi, Mistral, Llama 3."""
ARGUED = re.compile(r"\s*([\w.\-]+)\s*(?:\[ARGS\])?\s*(?=\{)")
"""A name before its arguments: Mistral's newer templates."""
FUNCTION = re.compile(r"<function=([\w.\-]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^>]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
BETWEEN = re.compile(r"[\s;,]*")
UNREADABLE = "(unreadable)"
"""Name of a call that is marked but cannot be parsed."""


def calls_in(text: str) -> tuple[ToolCall, ...]:
    """Return the tool calls that are written in a text, in order.

    Reads `<tool_call>{...}</tool_call>`, `[TOOL_CALLS]`, `<|python_tag|>`, `<function=name>`, and an answer that consists of the call in
    JSON, with or without a code fence.  A mark without a readable call gives a call named `UNREADABLE`.
    """
    if functions := FUNCTION.findall(text):
        return tuple(ToolCall(name=name, arguments=_parameters(body)) for name, body in functions)
    if MARK.search(text):
        parts = MARK.split(text)[1:]
        found = [call for part in parts if part.strip(" \n\t;,") for call in _marked(part)]
        return tuple(found) or (ToolCall(name=UNREADABLE, arguments=""),)
    values = [parse_json(part) for part in FENCE.findall(text) or [text]]
    return tuple(call for value in values if value is not NO_JSON for call in _calls(value))


def _parameters(body: str) -> str:
    """Arguments of a `<function=...>`: a JSON object, or one tag per parameter.

    The value of a tag is JSON or plain text.
    """
    if not (named := PARAMETER.findall(body)):
        return body.strip() or "{}"
    values = {name: value if (parsed := parse_json(value)) is NO_JSON else parsed for name, value in named}
    return json.dumps(values, ensure_ascii=False)


def _marked(part: str) -> Iterator[ToolCall]:
    """Yield the calls after one mark."""
    decoder, place, read = json.JSONDecoder(), 0, False
    while True:
        place = BETWEEN.match(part, place).end()  # type: ignore[union-attr]
        named = ARGUED.match(part, place)
        try:
            value, end = decoder.raw_decode(part, named.end() if named else place)
        except (ValueError, RecursionError):
            if not read:
                yield ToolCall(name=UNREADABLE, arguments=part.strip())
            return
        found = [ToolCall(name=named[1], arguments=_text(value))] if named else list(_calls(value, bare=True))
        yield from found or [ToolCall(name=UNREADABLE, arguments=_text(value))]
        place, read = end, True


def _calls(value: Any, bare: bool = False) -> Iterator[ToolCall]:
    """Yield the calls of a JSON value: an object with a name and arguments, or a list of them.

    bare: a name alone is a call without arguments.
    """
    for item in value if isinstance(value, list) else [value]:
        item = item.get("function", item) if isinstance(item, dict) else item
        if not isinstance(item, dict) or not isinstance(item.get("name"), str) or not item["name"].strip():
            continue
        field = next((field for field in ("arguments", "parameters") if field in item), "")
        if field or bare:
            yield ToolCall(name=item["name"], arguments=_text(item[field]) if field else "{}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def readable(call: ToolCall) -> bool:
    """Return True if the call's arguments are a JSON object."""
    return call.name != UNREADABLE and isinstance(parse_json(call.arguments or "{}"), dict)


def canonical_call(call: ToolCall | Call) -> str:
    """Return name and arguments so that equal calls have equal texts.

    Unreadable arguments stay as they are.
    """
    value = parse_json(call.arguments or "{}")
    return f"{call.name}({call.arguments if value is NO_JSON else canonical_json(value)})"


def canonical_calls(calls: Iterable[ToolCall | Call]) -> str:
    """Return all calls in canonical form, sorted; "" without calls."""
    return "\n".join(sorted(map(canonical_call, calls)))


def names_agree(calls: Iterable[ToolCall], wanted: Iterable[Call]) -> bool:
    """Return True if the same tools are called, each as often as wanted."""
    return Counter(call.name for call in calls) == Counter(call.name for call in wanted)
