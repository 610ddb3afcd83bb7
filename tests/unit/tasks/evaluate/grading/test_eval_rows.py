"""Test rows: leaks from training are refused, and tags describe the rows."""

from pathlib import Path

import pytest

from tasks.evaluate.grading.eval_rows import read_test_rows, read_test_split, tag_rows
from tasks.shared.errors import DataError
from tasks.shared.formats.articles import Article, with_article
from tasks.shared.formats.rows import Message, Row, write_rows
from tasks.shared.formats.tasks import Task, write_tasks
from tests.support_rows import support_row


def make_row(name: str, intent: str = "returns", question: str = "How long?", **more: object) -> Row:
    turns = (Message(role="user", content=question), Message(role="assistant", content=f"{intent}\nThat is 45 days."))
    return support_row(messages=turns, intent=intent, **({"id": name, "group": f"g-{name}"} | more))


def write_split(folder: Path, test: list[Row], train: list[Row]) -> Path:
    write_rows(folder / "test.jsonl", test)
    write_rows(folder / "train.jsonl", train)
    return folder


def test_a_clean_split_is_read(tmp_path: Path) -> None:
    rows = [make_row("a"), make_row("b", "other")]
    assert read_test_rows(write_split(tmp_path, rows, [make_row("c")])) == rows
    assert read_test_split(tmp_path).tasks["support"].labels == ("other", "returns")
    write_split(tmp_path, rows, [make_row("c", "warranty")])
    write_tasks(tmp_path, {"support": Task(labels=("z", "returns")), "idle": Task(labels=("y",))})
    tasks = read_test_split(tmp_path).tasks
    assert tasks["support"].labels == ("z", "returns", "other", "warranty"), "its own first, then those of all its rows"
    assert tasks["idle"].labels == ("y",)


@pytest.mark.parametrize("train", [make_row("a", group="other"), make_row("c", group="g-a")])
def test_rows_that_were_trained_on_are_refused_by_name(tmp_path: Path, train: Row) -> None:
    with pytest.raises(DataError, match=r"1 rows share their id or phrasing group with train.jsonl: a"):
        read_test_rows(write_split(tmp_path, [make_row("a"), make_row("b")], [train]))


def test_calibration_counts_as_training(tmp_path: Path) -> None:
    write_split(tmp_path, [make_row("a")], [make_row("c")])
    write_rows(tmp_path / "calibration.jsonl", [make_row("a")])
    with pytest.raises(DataError, match=r"calibration.jsonl: a"):
        read_test_rows(tmp_path)


def test_an_empty_split_and_an_id_that_stands_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test.jsonl: no rows"):
        read_test_rows(write_split(tmp_path, [], [make_row("c")]))
    with pytest.raises(DataError, match="1 duplicate ids: a"):
        read_test_rows(write_split(tmp_path, [make_row("a"), make_row("a")], [make_row("c")]))


def test_tags_tell_rare_intents_long_questions_and_articles_in_the_prompt() -> None:
    article = Article(
        id="a1", title="Times", topic="returns", text="Forty-five days it is, and not a day more or less than that."
    )
    rows = [
        make_row("a"), make_row("b", "warranty", with_article("How long?", article), grounded=True),
        make_row("c", "other", "And how long would that be for a kettle?"),
    ]  # fmt: skip
    train = [
        make_row(f"t{index}", intent) for index, intent in enumerate(["returns"] * 3 + ["warranty"] * 2 + ["other"])
    ]
    tags = tag_rows(rows, train)
    assert [tags[name]["frequency"] for name in "abc"] == ["head", "head", "tail"]
    assert [tags[name]["length"] for name in "abc"] == ["short", "short", "long"]
    assert [tags[name]["grounded"] for name in "abc"] == ["no", "yes", "no"]
    assert tags["a"] == {"kind": "faq", "intent": "returns", "frequency": "head", "length": "short", "grounded": "no"}
    assert tag_rows(rows[:1], train[3:])["a"]["frequency"] == "tail", "an intent that was never trained"
    assert {found["frequency"] for found in tag_rows(rows, rows).values()} == {"head"}, "all equally frequent"


def test_rows_without_labels_have_no_frequency_and_several_tasks_are_a_tag() -> None:
    rows = [make_row("a"), make_row("b").model_copy(update={"key": (), "task": "chat"})]
    tags = tag_rows(rows, [])
    assert "frequency" not in tags["b"] and tags["a"]["frequency"] == "head"
    assert (tags["a"]["task"], tags["b"]["task"]) == ("support", "chat")
    assert "task" not in tag_rows(rows[:1], [])["a"]
