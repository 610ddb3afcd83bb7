"""Examples and sources of a teacher's prompts."""

from tasks.shared.formats.articles import Article, with_article
from tasks.shared.formats.rows import Row
from tasks.shared.formats.targets import Decline, Facts
from tasks.shared.formats.tasks import Task
from tasks.traces.prompt import choose_examples, narrow_sources
from tests.tiny_llama import make_row

FACTS = (Facts(groups=(("45 days",),)),)


def row(name: str, question: str = "How long?", **fields: object) -> Row:
    turns = [("user", question), ("assistant", "returns\nIt is 45 days.")]
    return make_row(turns, **{"id": name, "group": name, "evidence": name, "key": FACTS, **fields})


def test_examples_state_a_fact_of_an_article_that_the_question_does_not_hold() -> None:
    article = Article(id="given", title="T", text="It is 45 days.")
    rows = [
        row("fit"), row("given", with_article("How long?", article)), row("factless", key=()), row("loose", evidence=""),
        row("declined", key=(*FACTS, Decline())),
    ]  # fmt: skip
    assert [found.id for found in choose_examples(rows, 9, 0)] == ["fit"], "by its key, whatever its tags are"


def test_the_first_line_of_a_gold_answer_is_a_source_unless_it_is_a_label() -> None:
    answer = make_row([("user", "Which?"), ("assistant", "Order 4417 is late.\nIt comes on Monday.")])
    assert "4417" in narrow_sources(answer, Task())
    assert "4417" not in narrow_sources(answer, Task(type="qa", layout="first_line"))
