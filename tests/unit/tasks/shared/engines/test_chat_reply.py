"""No response makes the reader fail: it returns a completion or a problem."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.shared.engines.chat_errors import Problem, read_error
from tasks.shared.engines.chat_reply import Completion, read_reply

NAMES = [
    "choices", "message", "content", "text", "type", "finish_reason", "delta", "tool_calls", "function", "name", "arguments",
    "id", "index", "usage", "prompt_tokens", "completion_tokens", "error", "code", "status", "detail", "loc", "msg", "metadata",
    "raw", "object", "errors", "param", "reasoning", "reasoning_content", "thinking", "refusal", "function_call",
]  # fmt: skip
plain = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "stop", "text", "error", "429", "{"])
)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4), max_leaves=12
)  # fmt: skip
messages = st.dictionaries(st.sampled_from(NAMES), values, max_size=5)
replies = values | st.fixed_dictionaries(
    {"choices": st.lists(st.fixed_dictionaries({"message": messages, "finish_reason": plain}), max_size=2)},
    optional={"usage": values, "error": values},
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(replies, st.sampled_from(["plain", "stream", "cut"]))
def test_any_json_is_read(value, form):
    content = json.dumps(value).encode()
    if form == "stream":
        content = b"data: " + content + b"\n\ndata: [DONE]\n\n"
    found = read_reply(content[: len(content) // 2] if form == "cut" else content, 30)
    assert isinstance(found, Completion | Problem)
    assert isinstance(found, Completion) or found.message
    assert read_error(400, content).message


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read(content):
    assert isinstance(read_reply(content), Completion | Problem) and read_error(500, content).message
