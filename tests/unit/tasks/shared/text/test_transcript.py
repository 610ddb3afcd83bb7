"""Conversations as text, for judges."""

from tasks.evaluate.grading.preference import request_of
from tasks.shared.formats.rows import Message, ToolCall
from tasks.shared.text.transcript import transcript
from tests.tiny_llama import make_row


def test_tool_calls_are_in_the_transcript_and_in_a_judges_request() -> None:
    call = Message(role="assistant", tool_calls=(ToolCall(name="find", arguments='{"order": 1}'),))
    row = make_row([("system", "Be short."), ("user", "Where?")])
    row = row.model_copy(update={"messages": (*row.messages, call, Message(role="tool", content="here"))})
    talk = 'user: Where?\nassistant: [calls find({"order": 1})]\ntool: here'
    assert transcript(row.messages) == f"system: Be short.\n{talk}" and request_of(row) == talk
