"""Values of replies under every measure."""

import json
from typing import Any

import pytest

from tasks.evaluate.grading.measures import MEASURES, TestItem, item_weights, items_by_measure
from tasks.evaluate.grading.replies import Reply, gold_answer, read_reply, truncation_notes
from tasks.shared.formats.rows import Message, Row, ToolCall
from tasks.shared.formats.targets import Call, Choice, Json, Label, Labels, NoCall, Number, Target, Text
from tasks.shared.formats.tasks import Layout, Task, TaskType
from tasks.shared.grading.texts import rouge_l
from tasks.shared.text.answer_format import join_answer
from tests.support_rows import TASKS, support_row

LABELS = ("returns", "warranty", "other")


def make_row(
    text: str = "That is 45 days.", kind: str = "faq", accept: tuple[tuple[str, ...], ...] = (("45 days",),)
) -> Row:
    turns = (Message(role="user", content="How long?"), Message(role="assistant", content=join_answer("returns", text)))
    return support_row(id="a", kind=kind, group="g", accept=accept, messages=turns)


TASK = TASKS["support"].model_copy(update={"labels": LABELS})


def item_of(row: Row, task: Task = TASK) -> TestItem:
    return TestItem(row, task, declining=True)


def value(measure: str, words: str, row: Row | None = None, choice: str = "returns", **more: bool) -> float:
    item = item_of(row or make_row())
    return float(MEASURES[measure].value(item, read_reply(Reply(choice, words, **more), item.task)))


def named(row: Row) -> list[str]:
    return list(items_by_measure([item_of(row)], ()))


def test_the_gold_answer_is_right_in_every_way() -> None:
    row = make_row()
    found = {name: value(name, row.answer) for name in named(row)}
    assert found == {"label": 1, "fact": 1, "over_refusal": 0, "format": 1, "loop": 0, "exact": 1, "rouge_l": 1.0}


def test_a_refusal_is_wrong_where_there_is_an_answer_and_right_where_there_must_be_none() -> None:
    words = "other\nI can't help with that."
    assert (value("fact", words), value("over_refusal", words), value("label", words, choice="other")) == (0, 1, 0)
    refuse = make_row("I cannot help with that.", "refuse", ())
    assert set(named(make_row())) - set(named(refuse)) == {"fact", "over_refusal"}
    assert (value("refusal", words, refuse), value("refusal", "returns\nOf course.", refuse)) == (1, 0)


def test_a_gold_answer_that_reads_like_a_refusal_is_no_item_of_over_refusal() -> None:
    assert "over_refusal" not in named(make_row("We cannot change the 45 days."))
    alone = TestItem(make_row(), TASK)
    assert not MEASURES["over_refusal"].applies(alone), (
        "no row of the task declines, so none of its answers can do so too often"
    )


@pytest.mark.parametrize("words", ["That is 45 days.", "gibberish\nThat is 45 days.", "returns\n", "returns", ""])
def test_form_needs_a_known_label_and_text(words: str) -> None:
    assert value("format", words) == 0


def test_form_needs_an_end() -> None:
    assert value("format", "returns\nThat is 45 days.") == 1
    assert value("format", "returns\nThat is 45 days and", ended=False) == 0
    cut = read_reply(Reply("returns", "returns\nThat is", ended=False), TASK)
    assert MEASURES["format"].shown(cut) == "returns\nThat is ..."


def test_a_reference_answers_without_a_label_line_and_keeps_its_first_line() -> None:
    assert value("fact", "45 days.\nAsk me more.", labeled=False) == 1
    assert value("fact", "45 days.\nAsk me more.") == 0


def test_exact_match_is_of_the_text_after_normalizing() -> None:
    assert value("exact", "warranty\nTHAT is  45 days.") == 1
    assert value("exact", "returns\nThat is 46 days.") == 0
    item = item_of(make_row())
    assert (MEASURES["exact"].wanted(item), MEASURES["label"].wanted(item)) == ("That is 45 days.", "returns")


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    assert rouge_l("a x c d", ("a b c d",)) == pytest.approx(0.75)
    assert rouge_l("a b c d", ("a b",)) == pytest.approx(2 * 1.0 * 0.5 / 1.5)
    assert rouge_l("", ("a b",)) == 0.0
    assert rouge_l("TÄHTAEG on 45 aastat", ("tähtaeg on 45 päeva",)) == pytest.approx(0.75)


def test_a_loop_counts_against_the_model() -> None:
    assert value("loop", "returns\ndays days days") == 1
    assert MEASURES["loop"].measure.better == MEASURES["over_refusal"].measure.better == "lower"


def test_reasoning_is_taken_off_before_anything_is_graded() -> None:
    words = "<think>\nIt is not 14 days. I can't help it.\n</think>\nreturns\nThat is 45 days."
    assert (value("fact", words), value("over_refusal", words), value("format", words), value("exact", words)) == (
        1,
        0,
        1,
        1,
    )
    assert read_reply(Reply("", words, labeled=False), TASK).text == "returns\nThat is 45 days."
    assert value("fact", "<think>\nIt is 45 days.\n</think>\nreturns\nNo idea.") == 0, "what counts is the answer"
    assert value("loop", "<think>\nso so so so") == 1


def test_answers_cut_within_their_reasoning_are_told() -> None:
    cut, whole = (
        Reply("", "<think>\nIt is", ended=False),
        Reply("", "<think>\nIt is.\n</think>\nreturns\n45", ended=False),
    )
    assert truncation_notes({"a": [cut, whole], "b": [whole]}, 8) == [
        "a: 1 of 2 answers were truncated within their reasoning; raise max_new_tokens (8)."
    ]
    assert (value("fact", cut.output), value("format", cut.output, ended=False)) == (0, 0)


def ask(
    kind: TaskType, *key: Target, gold: str = "", layout: Layout = "none", calls: tuple[ToolCall, ...] = (), **more: Any
) -> TestItem:
    answer = (Message(role="assistant", content=gold, tool_calls=calls),) if gold or calls else ()
    row = Row(id="a", group="a", key=key, messages=(Message(role="user", content="Well?"), *answer))
    return TestItem(row, Task(type=kind, layout=layout, **more))


INVOICE = Json(value='{"total": 12}', schema_text=json.dumps({"required": ["total"]}))
WEATHER = Call(name="weather", arguments='{"city": "Oslo"}')


@pytest.mark.parametrize(
    ("item", "output", "values"),
    [
        (ask("classification", Label(label="tea"), gold="tea", layout="alone", labels=("tea",)), "Tea", {"label": 1, "label_balanced": 1, "format": 0}),
        (ask("classification", Labels(labels=("a", "b")), gold="a, b"), "a", {"labels": 0, "labels_f1": 2 / 3, "format": 1}),
        (ask("extraction", INVOICE, gold='{"total": 12}'), '{"total": 12.0}', {"format": 1, "json_valid": 1, "json_schema": 1, "json_exact": 1, "field_f1": 1}),
        (ask("extraction", INVOICE), '{"sum": 12}', {"format": 1, "json_valid": 1, "json_schema": 0, "json_exact": 0, "field_f1": 0}),
        (ask("reasoning", Number(value=72), gold="#### 72"), "24 * 3 = 72", {"format": 1, "loop": 0, "value": 1, "words": 5}),
        (ask("reasoning", Choice(options=("x", "y"), right=1)), "B", {"format": 1, "loop": 0, "choice": 1, "words": 1}),
        (ask("tools", WEATHER, calls=(ToolCall(name="weather"),)), '<tool_call>{"name": "weather", "arguments": {"city": "Bergen"}}</tool_call>',
         {"format": 1, "call_json": 1, "call_name": 1, "call_arguments": 0}),
        (ask("tools", WEATHER), "It rains.", {"format": 1, "call_json": 0, "call_name": 0, "call_arguments": 0}),
        (ask("tools", NoCall(), gold="No."), "No.", {"format": 1, "no_call": 1}),
        (ask("summarization", Text(references=("a b", "c d"))), "c d", {"format": 1, "loop": 0, "rouge_l": 1, "words": 2}),
        (ask("chat", gold="Hello there."), "", {"format": 0, "loop": 0, "rouge_l": 0}), (ask("chat"), "Hi.", {"format": 1, "loop": 0}),
    ],
)  # fmt: skip
def test_targets_and_task_decide_the_measures(item: TestItem, output: str, values: dict[str, float]) -> None:
    answer = read_reply(Reply("", output), item.task)
    found = {name: float(MEASURES[name].value(item, answer)) for name in items_by_measure([item], ())}
    assert found == pytest.approx(values)


def test_the_gold_answer_has_the_best_value_of_every_measure() -> None:
    calls = (ToolCall(name="weather", arguments='{"city": "Oslo"}'),)
    items = [
        ask("tools", WEATHER, calls=calls), ask("extraction", INVOICE, gold='{"total": 12}'), ask("reasoning", Number(value=72), gold="#### 72"),
        ask("classification", Label(label="tea"), gold='{"label": "tea"}', layout="json", labels=("tea",)),
    ]  # fmt: skip
    for item in items:
        for name, (own,) in items_by_measure([item], ()).items():
            entry = MEASURES[name]
            if name != "words":
                assert float(entry.value(own, gold_answer(item.row, item.task))) == float(
                    entry.measure.better == "higher"
                ), name


def test_rare_labels_weigh_as_much_as_frequent_ones() -> None:
    rows = [
        support_row(id=f"r{place}", group=f"g{place}", intent=name, messages=(Message(role="user", content="?"),))
        for place, name in enumerate("aaab")
    ]
    weights = item_weights("label_balanced", [item_of(row) for row in rows])
    assert sum(weights.values()) == pytest.approx(4) and weights["r3"] == pytest.approx(3 * weights["r0"])


def test_a_group_of_rows_counts_once() -> None:
    rows = [
        support_row(id=f"r{place}", group=group, intent=name, messages=(Message(role="user", content="?"),))
        for place, (group, name) in enumerate([("g", "a"), ("g", "a"), ("g", "a"), ("h", "a"), ("i", "b")])
    ]
    items = [item_of(row) for row in rows]
    assert list(item_weights("label", items).values()) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0, 1.0])
    balanced = item_weights("label_balanced", items)
    assert sum(balanced.values()) == pytest.approx(3) and balanced["r4"] == pytest.approx(1.5)
    assert sum(balanced[f"r{place}"] for place in range(3)) == pytest.approx(balanced["r3"])
