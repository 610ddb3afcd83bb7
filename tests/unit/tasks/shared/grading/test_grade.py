"""Grades and canonical forms: one answer key, whatever asks."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.shared.formats.rows import ToolCall
from tasks.shared.formats.targets import (
    Call,
    Choice,
    Decline,
    Facts,
    Json,
    Label,
    Labels,
    NoCall,
    Number,
    Target,
    Text,
)  # fmt: skip
from tasks.shared.formats.tasks import Layout, Task
from tasks.shared.grading.answer import read_answer
from tasks.shared.grading.grade import canonical, grade, grade_key

CHAT = Task()


def graded(target: Target, output: str, task: Task = CHAT, **parts: Any) -> float:
    return grade(target, read_answer(output, task, **parts), task)


WORDS = st.text(alphabet=st.characters(categories=("L", "Nd")), min_size=1, max_size=8)
JSONS: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e6, 1e6) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(WORDS, JSONS, max_size=3)
GOLD = st.one_of(
    WORDS.map(lambda label: (Label(label=label), label)),
    st.sets(WORDS, min_size=1, max_size=4).map(lambda found: (Labels(labels=tuple(found)), ", ".join(found))),
    st.lists(WORDS, min_size=1, max_size=3).map(lambda found: (Facts(groups=[(word,) for word in found]), ". ".join(found))),
    WORDS.map(lambda text: (Text(references=(text,)), text)),
    st.floats(-1e6, 1e6).map(lambda value: (Number(value=value), f"It is {value:.7f}.")),
    st.integers(-(10**9), 10**9).map(lambda value: (Number(value=value), f"Thus #### {value:,}")),
    JSONS.map(lambda value: (Json(value=json.dumps(value)), json.dumps(value))),
    JSONS.map(lambda value: (Json(value=json.dumps(value)), f"```json\n{json.dumps(value, indent=1)}\n```")),
    OBJECTS.map(lambda found: (
        Call(name="look_up", arguments=json.dumps(found)),
        f"<tool_call>\n{json.dumps({'name': 'look_up', 'arguments': found})}\n</tool_call>",
    )),
    st.just((Decline(), "I'm sorry, I can't help with that.")),
    st.just((NoCall(), "It rains in Bergen.")),
    st.integers(0, 3).map(lambda index: (Choice(options=("red", "green", "blue", "a gray one"), right=index), f"({'ABCD'[index]})")),
)  # fmt: skip


@given(GOLD, st.booleans())
def test_the_gold_answer_is_right_also_after_reasoning(gold: tuple[Target, str], reasons: bool) -> None:
    target, output = gold
    assert graded(target, f"<think>\nmaybe 7, or none of B\n</think>\n\n{output}" if reasons else output) == 1.0


@given(GOLD, GOLD)
def test_answers_that_agree_have_equal_grades(gold: tuple[Target, str], other: tuple[Target, str]) -> None:
    target, own, another = gold[0], read_answer(gold[1], CHAT), read_answer(other[1], CHAT)
    equal = canonical(target, own, CHAT) == canonical(target, another, CHAT)
    assert not equal or grade(target, own, CHAT) == grade(target, another, CHAT)
    if target.type in ("label", "labels", "json", "decline", "choice", "facts"):  # right answers agree
        assert equal == (grade(target, another, CHAT) == 1.0)


@given(OBJECTS)
def test_the_order_of_keys_and_the_form_of_numbers_do_not_count(value: dict[str, Any]) -> None:
    def turned(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: turned(item[key]) for key in reversed(list(item))}
        if isinstance(item, list):
            return [turned(one) for one in item]
        return float(item) if isinstance(item, int) and not isinstance(item, bool) else item

    assert graded(Json(value=json.dumps(value)), json.dumps(turned(value))) == 1.0


@pytest.mark.parametrize(
    ("layout", "output", "right"),
    [
        ("first_line", "returns\nWithin 45 days.", True), ("first_line", "Within 45 days.", False), ("alone", "Returns.", True),
        ("alone", "returns\nWithin 45 days.", False), ("json", '{"label": "returns", "why": "x"}', True), ("json", "returns", False),
        ("none", "**returns**", True), ("none", "It is about returns.", False), ("alone", "", False),
    ],
)  # fmt: skip
def test_a_label_is_where_the_layout_puts_it(layout: Layout, output: str, right: bool) -> None:
    assert graded(Label(label="returns"), output, Task(layout=layout)) == right


def test_a_chosen_label_counts_instead_of_the_written_one() -> None:
    task = Task(layout="first_line")
    assert graded(Label(label="returns"), "payment\nx", task, choice="returns") == 1.0
    assert graded(Label(label="payment"), "payment\nx", task, choice="returns") == 0.0


def test_labels_that_differ_in_case_only_stay_apart() -> None:
    task = Task(layout="alone", labels=("US", "us"))
    assert (graded(Label(label="US"), "US", task), graded(Label(label="US"), "us", task)) == (1.0, 0.0)


def test_labels_are_a_set() -> None:
    target, task = Labels(labels=("Food, drinks", "travel")), Task(layout="alone")
    assert graded(target, "travel\nFood, drinks", task) == 1.0
    assert graded(target, '["travel", "food, drinks"]', task) == 1.0
    assert graded(target, "travel", task) == 0.0
    assert graded(Labels(), "none", task) == 1.0
    assert graded(Labels(), "travel", task) == 0.0


@pytest.mark.parametrize(
    ("given_text", "refusals", "right"),
    [
        ("Das darf ich leider nicht beantworten.", ("darf ich .*nicht",), 1.0), ("Das darf ich leider nicht beantworten.", (), 0.0),
        ("I can't help with that.", ("darf ich .*nicht",), 0.0), ("I can\u2019t help with that.", (), 1.0),
        ("DARF ICH NICHT", ("darf ich.*nicht",), 1.0),
    ],
)  # fmt: skip
def test_the_task_says_how_answers_decline(given_text: str, refusals: tuple[str, ...], right: float) -> None:
    assert graded(Decline(), given_text, Task(refusals=refusals)) == right


def test_facts_in_a_script_without_spaces() -> None:
    target = Facts(groups=((("45\u5929"),),))
    assert graded(target, "\u60a8\u53ef\u4ee5\u572845\u5929\u5185\u9000\u8d27\u3002") == 1.0
    assert graded(target, "\u60a8\u53ef\u4ee5\u5728145\u5929\u5185\u9000\u8d27\u3002") == 0.0


def test_a_key_wants_its_calls_and_no_others() -> None:
    key = (Call(name="a", arguments='{"x": 1}'), Call(name="b"))
    calls = (ToolCall(name="b"), ToolCall(name="a", arguments='{"x": 1.0}'))
    assert grade_key(key, read_answer("", CHAT, tool_calls=calls), CHAT) == 1.0
    assert grade_key(key, read_answer("", CHAT, tool_calls=(*calls, ToolCall(name="c"))), CHAT) == 0.0
    assert grade_key(key[:1], read_answer("", CHAT, tool_calls=calls), CHAT) == 0.0
    assert grade_key((), read_answer("anything", CHAT), CHAT) == 1.0
    assert grade_key((NoCall(), Facts(groups=(("Oslo",),))), read_answer("Oslo.", CHAT), CHAT) == 1.0
