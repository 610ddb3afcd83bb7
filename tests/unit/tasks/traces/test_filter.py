from dataclasses import replace

import pytest

from tasks.shared.formats.rows import ToolCall
from tasks.shared.formats.tasks import Task
from tasks.traces.defaults import ANY_FORM, SENTENCE
from tasks.traces.filter import Evidence, judge_form, judge_grounding, loops
from tasks.traces.reply import Reply, close_sentence

ARTICLE = "Returns\nYou have 45 days to return an unused kettle. The courier collects it, return postage costs £3.50, and repairs take 9 weeks."
NARROW = "how long for a return, and what is the postage?\nReturn an unused kettle within 45 days; postage costs £3.50.\n45 days\nforty-five days"
SOURCES = f"{ARTICLE}\n{NARROW}"
ACCEPT = (("45 days", "forty-five days"),)


def rejection(
    text: str, finish: str = "stop", accept=ACCEPT, refusal: bool = False, narrow: str = NARROW, **limits
) -> str:
    evidence = Evidence(accept=accept, narrow=narrow, wide=f"{ARTICLE}\n{narrow}", refusal=refusal)
    rules = replace(SENTENCE, **limits)
    return judge_form(Reply(text, finish), rules) or judge_grounding(text, evidence, rules, Task())


@pytest.mark.parametrize(
    "text",
    [
        "You have 45 days to return an unused kettle.",
        "Return it within forty-five days.",
        "You have 45 days, and return postage costs £3.5.",
    ],
)
def test_keeps_what_the_article_says(text):
    assert rejection(text) == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("  ", "empty"),
        ("45 days", "too short"),
        ("You have 45 days " + "to return an unused kettle or cup " * 9, "too long"),
        ("Question: how long? You have 45 days.", "markup"),
        ("You have 45 days\nto return it.", "line break"),
        ("Answer: you have 45 days.", "markup"),
        ("You have 45 days.<|im_end|>", "markup"),
        ("The article says you have 45 days.", "markup"),
        ("You have **45 days** to return it.", "markup"),
        ("You can return an unused kettle.", "fact"),
        ("You have 45 days and 10 minutes to return it.", "number"),
        ("You have 45 days and two weeks to return it.", "number"),
        ("You have 45 days, or write to help@shop.example soon.", "address"),
        ("I can't help with that return after 45 days.", "refuses"),
        ("Sorry, I'm not able to help.", "refuses"),
        ("You have 45 days to return, return, return it.", "repeats"),
        ("You have 45 days to return it and you have 45 days to return it.", "repeats"),
        ("You have 45 days, and repairs take 9 weeks.", "other number"),
        ("You do not have 45 days to return it.", "negation"),
        ("You have 45 days because wizards charge batteries under moonlight.", "unsupported"),
    ],
)
def test_drops_and_says_why(text, reason):
    assert rejection(text) == reason


def test_an_answer_cut_off_is_dropped():
    assert rejection("You have 45 days to return an unused kettle", finish="length") == "unfinished"


def test_every_group_must_be_stated():
    both = (("45 days",), ("£3.50",))
    assert rejection("You have 45 days to return it.", accept=both) == "fact"
    assert rejection("You have 45 days and postage costs £3.50.", accept=both) == ""


def test_refusals_must_refuse():
    assert rejection("Sorry, I can't help with that.", accept=(), refusal=True) == ""
    assert rejection("Of course, here is the code.", accept=(), refusal=True) == "no refusal"
    assert rejection("I can't share the code 9924.", accept=(), refusal=True) == "number"


def test_a_refusal_with_another_ones_reason_is_dropped():
    asked = "do espresso and pills mix?\nSorry, I can't advise on health."
    assert rejection("Sorry, I can't advise on health.", accept=(), refusal=True, narrow=asked) == ""
    assert (
        rejection("Sorry, I can't advise on the law; a solicitor can.", accept=(), refusal=True, narrow=asked)
        == "unsupported"
    )


def test_strictness_is_a_setting():
    assert rejection("You have 45 days, and repairs take 9 weeks.", other_numbers=True) == ""
    assert rejection("You do not have 45 days to return it.", negations=True) == ""
    assert rejection("You have 45 days because wizards charge batteries under moonlight.", support=0) == ""


def test_a_swallowed_full_stop_comes_back():
    assert close_sentence(" It takes 45 days") == "It takes 45 days."
    assert close_sentence("Is it?") == "Is it?" and close_sentence(" ") == ""


LETTER = """Dear Ms Ode,

thank you for **your** order. It holds:

- 2 lamps
- 2 shades

```python
print("no")
```

| a | b |
|---|---|
| 1 | 2 |
"""


def test_an_answer_of_any_form_passes_where_the_task_asks_for_no_sentence():
    for text in (LETTER, '{"a": [0, 0, 0, 0, 0, 0]}', "4", "on the grounds that on the grounds that on it"):
        assert judge_form(Reply(text, "stop"), ANY_FORM) == ""
    assert judge_form(Reply(LETTER, "stop"), replace(ANY_FORM, max_words=9)) == "too long"
    assert judge_form(Reply(LETTER, "stop"), replace(ANY_FORM, markup=False)) == "markup"
    assert judge_form(Reply(LETTER, "stop"), replace(ANY_FORM, line_breaks=False)) == "line break"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply("", "stop"), "empty"),
        (Reply("", "length", thought=True), "only reasoning"),
        (Reply("", "stop", thought=True), "only reasoning"),
        (Reply("Partly", "content_filter"), "content filter"),
        (Reply("", "content_filter"), "content filter"),
        (Reply("Well", "length"), "unfinished"),
        (Reply("Well", "eos_by_moonlight"), "ended by eos_by_moonlight"),
        (Reply("Well.<|im_end|>", "stop"), "template mark"),
        (Reply("I see. " * 30, "stop"), "repeats"),
        (Reply("", "tool_calls", calls=(ToolCall(name="find", arguments='{"a": 1}'),)), ""),
        (Reply("", "tool_calls", calls=(ToolCall(name="find", arguments='{"a": '),)), "broken call"),
        (Reply("", "tool_calls", calls=(ToolCall(name="find", arguments="[1]"),)), "broken call"),
        (Reply("", "tool_calls", calls=(ToolCall(name="invented"),)), "unknown tool"),
    ],
)
def test_form_of_a_free_answer(reply, reason):
    assert judge_form(reply, ANY_FORM, frozenset({"find"})) == reason


def test_only_an_endless_end_is_a_loop():
    assert loops("It is. " + "and so on " * 8)
    assert not loops("-" * 80) and not loops("row\n" * 3) and not loops("| 0 | 0 |\n" * 3 + "| 1 | 2 |")
