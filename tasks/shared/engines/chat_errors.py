"""Errors of chat endpoints, by status or inside a response, and the pause they ask for."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

RETRIED = frozenset({408, 409, 425, 429, 529})
"""Status codes below 500 (and 529) of failures that may pass."""
FINAL = frozenset({501, 505})
TRANSIENT = re.compile(
    r"rate.?limit|overload|too many requests|unavailable|time[sd]?.?out|temporar|try again|retry|capacity|server.?error|upstream|"
    r"throttl|loading|busy",
    re.IGNORECASE,
)
UNPAID = re.compile(r"insufficient[_ ](?:quota|balance|credit|funds)|credit balance|payment required", re.IGNORECASE)
OUT_OF_QUOTA = re.compile(r"exceeded your current quota", re.IGNORECASE)
TEXTS = ("message", "msg", "detail", "details", "description", "error", "title", "reason", "type", "code", "status")


@dataclass(frozen=True)
class Problem:
    """A response without an answer.

    status: HTTP status, or the code of an error inside a response with status 200.
    passes: True if the same request may be answered later.
    named: parameters of the request that the error names in a field of its own.
    quote: True if the body explains more than `message`.
    """

    status: int
    message: str
    passes: bool = False
    named: tuple[str, ...] = ()
    quote: bool = False


def is_transient(status: int, text: str) -> bool:
    """Return True if an error with this status and text may pass by itself."""
    if UNPAID.search(text) or (OUT_OF_QUOTA.search(text) and "retry" not in text.lower()):
        return False
    return status in RETRIED or (status >= 500 and status not in FINAL)


def read_error(status: int, content: bytes) -> Problem:
    """Read the body of a response with another status than 200."""
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        reply = None
    text = plain_text(content)
    if isinstance(reply, list) and len(reply) == 1:
        reply = reply[0]
    if isinstance(reply, dict):
        error = reply.get("error") or reply.get("detail") or reply.get("errors") or reply
        text = describe(error) or text
        named = tuple(_named(error))
    else:
        named = ()
    return Problem(status, text or "(empty body)", is_transient(status, text), named)


def find_error(reply: Mapping[str, Any]) -> Problem | None:
    """Return the error inside a response with status 200; None if it holds none."""
    choices = reply.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    error = reply.get("error") or first.get("error")
    if not error and not isinstance(choices, list):
        told = reply.get("object") == "error" or "code" in reply or "detail" in reply
        error = reply.get("errors") or (reply if told else None)
    if not error:
        return None
    text = describe(error) or json.dumps(error)
    status = _status(error) or _status(reply)
    passes = is_transient(status, text) or (not status and is_transient(503, text) and bool(TRANSIENT.search(text)))
    return Problem(status or 200, text, passes, tuple(_named(error)))


def _status(error: Any) -> int:
    """HTTP status that an error names, as a number or in words; 0 if there is none."""
    if not isinstance(error, Mapping):
        return 0
    for name in ("code", "status", "status_code", "http_status"):
        value = error.get(name)
        if isinstance(value, str) and value.strip().isdigit():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600:
            return value
    return 0


def describe(error: Any) -> str:
    """Text of an error: its message, and its type, code or place where they say more."""
    if isinstance(error, str):
        return error.strip()
    if isinstance(error, list):
        return "; ".join(filter(None, map(describe, error)))
    if not isinstance(error, Mapping):
        return json.dumps(error) if error is not None else ""
    place = ".".join(str(part) for part in error["loc"]) if isinstance(error.get("loc"), list) else ""
    found = [
        describe(error[name]) for name in TEXTS if isinstance(error.get(name), str | Mapping | list) and error[name]
    ]
    metadata = error.get("metadata")
    if isinstance(metadata, Mapping) and metadata.get("raw"):
        found.append(str(metadata["raw"]))
    text = " | ".join(dict.fromkeys(found)) or json.dumps(error, ensure_ascii=False)
    return f"{place}: {text}" if place else text


def _named(error: Any) -> Iterator[str]:
    """Parameters that an error names: OpenAI's `param`, pydantic's `loc`."""
    for part in error if isinstance(error, list) else [error]:
        if not isinstance(part, Mapping):
            continue
        if isinstance(part.get("param"), str) and part["param"]:
            yield part["param"]
        if isinstance(part.get("loc"), list) and part["loc"]:
            yield str(part["loc"][-1])


def plain_text(content: bytes) -> str:
    """Text of a body for messages: one line, without the markup of a web page."""
    text = content[:20_000].decode("utf-8", "replace")
    if text.lstrip("\ufeff \t\r\n").startswith("<"):
        text = re.sub(r"(?is)<(script|style)\b.*?(?:</\1>|$)|<[^>]*>", " ", text)
    return re.sub(r"\s+", " ", text).strip()


def retry_after(header: str) -> float | None:
    """Seconds of a Retry-After header (a number or an HTTP date); None if it cannot be parsed."""
    if re.fullmatch(r"\d+(\.\d+)?", header.strip()):
        return float(header)
    try:
        when = parsedate_to_datetime(header)
    except (ValueError, TypeError, OverflowError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
