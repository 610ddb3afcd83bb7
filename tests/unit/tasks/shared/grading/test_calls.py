"""Tool calls in the text of answers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.shared.formats.rows import ToolCall
from tasks.shared.formats.targets import Call, NoCall
from tasks.shared.formats.tasks import Task
from tasks.shared.grading.answer import read_answer
from tasks.shared.grading.calls import UNREADABLE, calls_in, canonical_call, names_agree, readable
from tasks.shared.grading.grade import grade

BODY = '{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}'
WANTED = Call(name="weather", arguments='{"days": 2.0, "city": "Oslo"}')
FORMS = [
    f"<tool_call>\n{BODY}\n</tool_call>", f"<tool_call>{BODY}", f"[TOOL_CALLS] [{BODY}]", '[TOOL_CALLS]weather[ARGS]{"city": "Oslo", "days": 2}',
    f"<|python_tag|>{BODY.replace('arguments', 'parameters')}", f"<|tool_call|>[{BODY}]<|/tool_call|>", f"```json\n{BODY}\n```", BODY,
    '<function=weather>{"city": "Oslo", "days": 2}</function>', f'{{"type": "function", "function": {BODY}}}',
    "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
    '{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\", \\"days\\": 2}"}', f"I look it up.\n<tool_call>\n{BODY}\n</tool_call>",
]  # fmt: skip


@pytest.mark.parametrize("text", FORMS)
def test_every_form_holds_the_same_call(text: str) -> None:
    answer = read_answer(text, Task(type="tools"))
    assert len(answer.calls) == 1
    assert canonical_call(answer.calls[0]) == canonical_call(WANTED)
    assert grade(WANTED, answer, Task()) == 1.0
    assert grade(NoCall(), answer, Task()) == 0.0


@given(
    st.lists(
        st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=3), min_size=1, max_size=3
    )
)
def test_several_calls_keep_their_order(arguments: list[dict[str, object]]) -> None:
    bodies = [json.dumps({"name": f"t{place}", "arguments": found}) for place, found in enumerate(arguments)]
    for text in (
        "".join(f"<tool_call>{body}</tool_call>\n" for body in bodies),
        f"[TOOL_CALLS] [{', '.join(bodies)}]",
        "<|python_tag|>" + "; ".join(bodies),
    ):
        calls = calls_in(text)
        assert [call.name for call in calls] == [f"t{place}" for place in range(len(arguments))]
        assert [json.loads(call.arguments) for call in calls] == arguments


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "weather", "argum',
        "<tool_call>",
        "[TOOL_CALLS] weather in Oslo",
        "<tool_call>[1, 2]</tool_call>",
    ],
)
def test_a_broken_call_is_a_call_and_not_readable(text: str) -> None:
    calls = calls_in(text)
    assert [call.name for call in calls] == [UNREADABLE]
    assert not readable(calls[0])


@pytest.mark.parametrize("text", ["", "It rains.", '{"name": "Bob", "age": 7}', "[1, 2]", "```python\nprint(1)\n```"])
def test_no_call(text: str) -> None:
    assert calls_in(text) == ()
    assert grade(NoCall(), read_answer(text, Task()), Task()) == 1.0


def test_a_call_that_is_cut_off_after_a_whole_one_is_a_call() -> None:
    text = f"<tool_call>\n{BODY}\n</tool_call>\n<tool_call>\n" + '{"name": "weather", "argu'
    assert [call.name for call in calls_in(text)] == ["weather", UNREADABLE]
    assert [call.name for call in calls_in(f"```json\n{BODY}\n```\nand\n```json\n{BODY}\n```")] == ["weather"] * 2
    assert calls_in('<tool_call>{"name": "now"}</tool_call>') == (ToolCall(name="now"),)


def test_structured_calls_come_before_text() -> None:
    answer = read_answer(
        "It rains.", Task(), tool_calls=(ToolCall(name="weather", arguments='{"city": "Oslo", "days": 2}'),)
    )
    assert grade(WANTED, answer, Task()) == 1.0
    assert names_agree(answer.calls, [WANTED])
    assert not names_agree(answer.calls, [WANTED, WANTED])
    assert not readable(ToolCall(name="weather", arguments="{city"))


def test_true_is_not_one() -> None:
    answer = read_answer('<tool_call>{"name": "a", "arguments": {"x": true}}</tool_call>', Task())
    assert grade(Call(name="a", arguments='{"x": 1}'), answer, Task()) == 0.0
