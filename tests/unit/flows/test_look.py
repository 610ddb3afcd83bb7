"""A first look at a file: named, counted, and a recipe that the planner accepts."""

import io
import json
import sys
from pathlib import Path

import pytest
import yaml

from flows.look import main
from flows.looking.starter import USUAL
from flows.planning.config import compose_recipe
from flows.planning.plan import find_technique
from tasks.curate.jsonl import Jsonl
from tasks.distill.sft import SFT
from tests.chat_files import chat, question, write
from tests.tiny_tokenizers import llama3_like


def look(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(list(arguments))
    shown = capsys.readouterr()
    return code, shown.out + shown.err


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def table(tmp_path: Path) -> str:
    file = tmp_path / "intents.csv"
    rows = [f'"{question(number)}",label {number % 4},web' for number in range(80)] + ['"Once?",rare label,web', "a,b"]
    file.write_text("text,intent,source\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return str(file)


def test_a_table_is_named_and_counted(table, capsys) -> None:
    code, shown = look(capsys, table, "--prices", "1", "2")
    assert code == 0
    assert max(len(line) for line in shown.splitlines() if "python -m" not in line) <= 80
    for words in (
        "CSV in utf-8: 81 texts (text) with labels (intent)", "82, all looked at", "81 usable", "type classification, label layout alone", "assistant, label",
        "records that cannot be read: 1", "a row with too many or too few cells", "line 83", "5 labels in 81 rows",
        "labels with 5 rows or fewer, 1 in all: rare label",
        "8 (test_share=0.1)", "70 requests", "at 1 and 2 per million", "not detected: py3langid",
    ):  # fmt: skip
        assert words in shown, words


def test_the_written_recipe_is_short_and_planned(table, tmp_path: Path, capsys) -> None:
    recipe = tmp_path / "conf" / "recipe" / "my.yaml"
    code, shown = look(capsys, table, "--write", str(recipe))
    assert code == 0 and f"--config-dir {tmp_path / 'conf'} +recipe=my dry_run=true" in shown
    lines = recipe.read_text("utf-8").splitlines()
    assert len(lines) <= 16 and lines[0] == "# @package _global_"
    found = compose_recipe("my", [f"hydra.searchpath=[file://{tmp_path / 'conf'}]"]).recipe
    corpus = found["steps"]["corpus"]
    assert corpus["path"] == table and corpus["task"] == {"type": "classification", "layout": "alone"}
    for step in found["steps"].values():
        settings = {name: value for name, value in step.items() if name not in {"_target_", "inputs", "seed"}}
        find_technique("test", step["_target_"])(**settings)
    code, shown = look(capsys, table, "--write", str(recipe))
    assert code == 2 and "exists" in shown
    code, shown = look(capsys, table, "--write", str(tmp_path / "My Recipe.yaml"))
    assert code == 2 and "lower-case" in shown
    code, shown = look(capsys, table, "--write", str(tmp_path / "no.yaml"))
    assert code == 2 and "no word that YAML reads as true, false or null" in shown
    (tmp_path / "file").write_bytes(b"")
    code, shown = look(capsys, table, "--write", str(tmp_path / "file" / "my.yaml"))
    assert code == 2 and "cannot be written" in shown


def test_columns_that_nobody_knows_are_shown_with_the_way_on(tmp_path: Path, capsys) -> None:
    file = write(tmp_path / "odd.jsonl", *({"frage": f"Was ist {n}?", "antwort": "So.", "abt": "x"} for n in range(30)))
    code, shown = look(capsys, file)
    assert code == 2 and "frage" in shown and "Was ist 0?" in shown and "map: {user: COLUMN" in shown
    code, shown = look(
        capsys, file, "--map", "{user: frage, assistant: antwort}", "--task", "qa", "--write", str(tmp_path / "a.yaml")
    )
    assert code == 0 and "30 rows by `map`" in shown
    recipe = yaml.safe_load((tmp_path / "a.yaml").read_text("utf-8"))
    assert recipe["steps"]["corpus"]["map"] == {"user": "frage", "assistant": "antwort"}
    assert recipe["steps"]["corpus"]["task"] == {"type": "qa"} and "rouge_l" in recipe["steps"]["verdict"]["margins"]
    for wrong, words in (
        ("{usr: frage}", "did you mean 'user'"),
        ("[a]", "a YAML mapping"),
        ("{a: [", "a YAML mapping"),
    ):
        code, shown = look(capsys, file, "--map", wrong)
        assert code == 2 and words in shown


def test_a_label_beside_free_answers_is_shown_as_a_tag(tmp_path: Path, capsys) -> None:
    rows = ({"frage": f"Was ist {n}?", "antwort": f"So {n}.", "abt": f"x{n}"} for n in range(30))
    columns = "{user: frage, assistant: antwort, label: abt}"
    code, shown = look(capsys, write(tmp_path / "odd.jsonl", *rows), "--map", columns)
    row = next(line for line in shown.splitlines() if "x0" in line)
    assert code == 0 and "tag" in row and "left out" not in row


def test_a_list_of_questions_is_shown_as_the_conversation(tmp_path: Path, capsys) -> None:
    file = write(
        tmp_path / "bench.jsonl", *({"question_id": n, "turns": [f"Why {n}?", "And then?"]} for n in range(12))
    )
    code, shown = look(capsys, file)
    (line,) = [line for line in shown.splitlines() if "turns " in line and "Why 0?" in line]
    assert code == 0 and "conversation, 2" in line


def test_several_tasks_are_looked_at_and_written(tmp_path: Path, capsys) -> None:
    sort = ({"work": "sort", "text": f"Card {n} is lost", "label": "lost"} for n in range(20))
    talk = ({"work": "talk", "question": f"Who is {n}?", "answer": "A lamp."} for n in range(20))
    file = write(tmp_path / "two.jsonl", *sort, *talk)
    code, shown = look(capsys, file, "--map", "{task: work}")
    assert code == 2 and "not in the setting `tasks`" in shown and "fix: --map" not in shown
    tasks = "{sort: {type: classification}, talk: {type: qa}}"
    code, shown = look(capsys, file, "--map", "{task: work}", "--tasks", tasks, "--write", str(tmp_path / "two.yaml"))
    assert code == 0
    corpus = yaml.safe_load((tmp_path / "two.yaml").read_text("utf-8"))["steps"]["corpus"]
    assert corpus["tasks"] == yaml.safe_load(tasks) and corpus["map"] == {"task": "work"}


def test_a_folder_with_splits_is_looked_at_and_written_split_by_split(tmp_path: Path, capsys) -> None:
    for name, start, rows in (("train", 0, 20), ("test", 40, 30), ("validation", 80, 10)):
        write(tmp_path / f"{name}.jsonl", *[chat(question(start + number), "x") for number in range(rows)])
    (tmp_path / "README.md").write_text("About this data.")
    recipe = tmp_path / "conf" / "recipe" / "mine.yaml"
    code, shown = look(capsys, str(tmp_path), "--write", str(recipe))
    assert code == 0 and "30 (the test file)" in shown and "would be 20 requests" in shown
    corpus = yaml.safe_load(recipe.read_text())["steps"]["corpus"]
    found = {name: Path(path).name for name, path in corpus.items() if name != "task"}
    assert found == {"train": "train.jsonl", "calibration": "validation.jsonl", "test": "test.jsonl"}
    words = " ".join(shown.split())
    assert all(f"{file} ({split})" in words for split, file in found.items())


def test_long_conversations_get_a_limit_that_holds_them(tmp_path: Path, capsys) -> None:
    assert SFT().max_tokens == USUAL
    for name, words, expected in (
        ("short", 20, {}),
        ("long", 600, {"max_tokens": 1024}),
        ("huge", 5000, {"max_tokens": 2048, "too_long": "drop"}),
    ):
        file = write(tmp_path / f"{name}.jsonl", *[chat(question(number), "word " * words) for number in range(4)])
        recipe = tmp_path / "recipe" / f"{name}.yaml"
        assert look(capsys, str(file), "--write", str(recipe))[0] == 0
        assert yaml.safe_load(recipe.read_text())["steps"]["tuned"] == {"epochs": 3, **expected}


def test_a_large_file_is_looked_at_by_a_sample_and_says_so(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("flows.looking.sample.FIRST", 50)
    monkeypatch.setattr("flows.looking.sample.DRAWN", 30)
    monkeypatch.setattr("flows.looking.tables.FIRST", 50)
    monkeypatch.setattr("flows.looking.tables.DRAWN", 30)
    file = tmp_path / "large.jsonl"
    write(file, *(chat(question(number), "x") for number in range(400)))
    with file.open("ab") as stream:
        stream.write(b"{broken\n")
    code, shown = look(capsys, str(file))
    assert code == 0
    assert "401; looked at the first 50 and 30 drawn at random from the rest" in " ".join(shown.split())
    assert "about 400 usable" in shown and "line 401" in shown


def test_lengths_in_tokens_and_a_terminal_that_is_not_utf8(tmp_path: Path, capsys, monkeypatch) -> None:
    llama3_like().save_pretrained(tmp_path / "model")
    file = write(tmp_path / "a.jsonl", *({"prompt": f"Wo ist \u2603 {n}?", "completion": "日本"} for n in range(12)))
    code, shown = look(capsys, file, "--tokenizer", str(tmp_path / "model"))
    assert code == 0 and "lengths in tokens" in shown
    code, shown = look(capsys, file, "--tokenizer", str(tmp_path / "nothing"))
    assert code == 2 and "no such folder" in shown
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", plain)
    assert main([file]) == 0
    plain.flush()
    assert b"Wo ist" in plain.buffer.getvalue()


def test_a_file_that_is_no_data_ends_with_a_message(tmp_path: Path, capsys) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"x": 1}), encoding="utf-8")
    assert look(capsys, str(file))[0] == 2
    file.write_bytes(b"PK\x03\x04")
    code, shown = look(capsys, str(file))
    assert code == 2 and "ZIP" in shown and "Traceback" not in shown
    assert look(capsys, str(tmp_path / "nowhere"))[0] == 2


def sums(number: int, answer: str) -> dict[str, str]:
    return {"question": question(number), "answer": answer.format(number)}


@pytest.mark.parametrize(
    ("answer", "kind", "measure"),
    [
        ("She has {0} of them.\n#### {0}", "reasoning", "value"),
        ("So it is \\boxed{{{0}}} in all.", "reasoning", "value"),
        ('{{"count": {0}, "item": "kettle"}}', "extraction", "json_exact"),
        ("#### {0} reasons\nThe first is the price.", "chat", "rouge_l"),
        ("It is {0}.", "chat", "rouge_l"),
    ],
)
def test_answers_suggest_the_task_and_its_measure(tmp_path: Path, capsys, answer: str, kind: str, measure: str) -> None:
    path = write(tmp_path / "rows.jsonl", *(sums(number, answer) for number in range(40)))
    recipe = tmp_path / "conf" / "recipe" / "my.yaml"
    code, shown = look(capsys, path, "--write", str(recipe))
    corpus = yaml.safe_load(recipe.read_text("utf-8").partition("steps:\n")[2])["corpus"]
    assert code == 0 and f"type {kind}" in shown and f"margins: {{{measure}: 0.05}}" in recipe.read_text("utf-8")
    assert corpus.get("task", {"type": "chat"}) == {"type": kind}
    assert ("40 of 40 answers" in " ".join(shown.split())) == (kind != "chat")
    code, shown = look(capsys, path, "--task", "chat")
    assert code == 0 and "type chat" in shown and "40 of 40" not in shown, "the user's word counts"


def test_the_test_rows_are_those_of_the_plan(table, capsys) -> None:
    expected = Jsonl(path=table).forecast(None).rows  # type: ignore[arg-type]
    code, shown = look(capsys, table)
    assert (
        code == 0
        and f"{expected.test} (test_share=0.1)" in shown
        and f"be {expected.train} requests" in " ".join(shown.split())
    )
