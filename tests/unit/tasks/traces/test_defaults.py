"""Defaults by task: strict for one sentence with facts, free for everything else, and all of them overridable."""

import pytest

from tasks.shared.formats.rows import Message, Row
from tasks.shared.formats.targets import Facts, Target
from tasks.shared.formats.tasks import Task, TaskType
from tasks.traces.defaults import ANY_FORM, GROUNDED, SENTENCE, Limits, length_of, rules_of, stops_of

SENTENCES = Task(type="qa", layout="first_line")
FACTS = (Facts(groups=(("45 days",),)),)


def row(key: tuple[Target, ...] = (), evidence: str = "") -> Row:
    return Row(id="r", group="g", messages=(Message(role="user", content="?"),), key=key, evidence=evidence)


def test_one_sentence_with_facts_is_strict() -> None:
    assert rules_of(row(FACTS), SENTENCES, Limits()) == SENTENCE
    plain = rules_of(row(), SENTENCES, Limits())
    assert plain.max_words == 40 and not plain.markup and plain.inventions and plain.support == 0


@pytest.mark.parametrize("kind", ["chat", "classification", "extraction", "qa", "summarization", "reasoning", "tools"])
def test_any_other_answer_is_free_unless_an_article_holds_its_facts(kind: TaskType) -> None:
    task = Task(type=kind)
    assert rules_of(row(FACTS), task, Limits()) == ANY_FORM
    assert rules_of(row(FACTS, "article"), task, Limits()) == GROUNDED
    summary = rules_of(row((), "article"), task, Limits())
    assert not summary.inventions and summary.other_numbers and summary.support == 0
    assert stops_of(task, None) == () and length_of(task, 0) == task.answer_tokens


def test_settings_come_first() -> None:
    found = rules_of(row(FACTS), SENTENCES, Limits(max_words=0, markup=True, support=0.0))
    assert (found.max_words, found.markup, found.support, found.min_words) == (0, True, 0.0, 3)
    assert stops_of(SENTENCES, []) == () and stops_of(Task(stop=("END",)), None) == ("END",)
    assert length_of(SENTENCES, 0) == 60 and length_of(SENTENCES, 7) == 7
    assert length_of(Task(type="qa", layout="first_line", max_new_tokens=90), 0) == 90
