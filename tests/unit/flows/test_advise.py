"""The command that advises: screens of 80 columns, recipes that plan, messages for wrong input."""

import re
from pathlib import Path

import pytest
import yaml

from flows.advise import main
from flows.planning.config import compose_recipe
from flows.planning.plan import build_plan
from tests.chat_files import chat, question, write
from tests.tiny_llama import save_tiny


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    save_tiny(tmp_path / "model")
    return str(tmp_path / "model")


def advise(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    try:
        code = main(list(arguments))
    except SystemExit as end:
        code = int(str(end.code))
    shown = capsys.readouterr()
    return code, shown.out + shown.err


def planned(recipe: Path) -> dict[str, str]:
    """Techniques by step of a written recipe, as the planner reads it."""
    found = compose_recipe(recipe.stem, [f"hydra.searchpath=[file://{recipe.parent.parent}]"]).recipe
    return {step.name: step.module.removeprefix("tasks.") for step in build_plan(found).steps}


def test_a_model_and_data_give_a_recipe_that_plans(tiny: str, tmp_path: Path, capsys) -> None:
    data = write(tmp_path / "chats.jsonl", *(chat(question(number), "It is so.") for number in range(400)))
    recipe = tmp_path / "conf" / "recipe" / "mine.yaml"
    code, shown = advise(capsys, tiny, "--data", data, "--write", str(recipe))
    assert code == 0 and f"--config-dir {tmp_path / 'conf'} +recipe=mine dry_run=true" in shown
    assert planned(recipe) == {
        "corpus": "curate.jsonl", "tuned": "distill.sft", "q8": "export.gguf", "int4": "quantize.gptq_levels", "q4": "export.gguf",
        "answers": "evaluate.generation", "verdict": "evaluate.paired",
    }  # fmt: skip
    content = yaml.safe_load(recipe.read_text("utf-8"))
    assert content["steps"]["corpus"]["path"] == data and content["models"]["base"]["path"] == tiny
    assert content["steps"]["verdict"]["margins"] == {"rouge_l": 0.05}
    assert max(len(row) for row in shown.splitlines() if "python -m" not in row and str(tmp_path) not in row) <= 80
    code, shown = advise(capsys, tiny, "--write", str(recipe))
    assert code == 2 and "exists" in shown


def test_a_tight_limit_gives_a_student_that_plans(tiny: str, tmp_path: Path, capsys) -> None:
    recipe = tmp_path / "conf" / "recipe" / "small.yaml"
    code, shown = advise(capsys, tiny, "--faster", "2.4", "--margin", "8", "--write", str(recipe))
    found = planned(recipe)
    assert code == 0 and found["slim"] == "prune.depth" and found["student"] == "distill.logits"
    assert "against tuned" in " ".join(shown.split())
    steps = yaml.safe_load(recipe.read_text("utf-8"))["steps"]
    assert steps["verdict"]["margins"] == {"label": 0.08, "fact": 0.08}
    assert steps["slim"]["ratio"] == 0.4 and steps["verdict"]["inputs"]["candidates"] == ["q4", "small"]


@pytest.mark.needs_embedded
def test_without_a_question_it_advises_on_the_embedded_model(tmp_path: Path, capsys) -> None:
    code, shown = advise(capsys)
    words = " ".join(shown.split())
    assert code == 0 and "what to do, in this order" in words and "a demo's corpus stands in" in words
    assert "python -m flows.advise --write my_conf/recipe/my.yaml" in shown
    measured, sources = words.count("measured: "), words.count("source: ")
    assert sources == measured + words.count("not measured here") > 10
    assert "A prompt cache [" not in words, "what the project lacks names no technique"
    recipe = tmp_path / "recipe" / "default.yaml"
    assert advise(capsys, "--write", str(recipe))[0] == 0 and "q4" in planned(recipe)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--memmory", "3"), "did you mean --memory?"),
        (("--items", "x"), "'x' is not a whole number"),
        (("--margin", "0"), "is not a number from 0.1 to 99"),
        (("--hardware", "tpu"), "invalid choice"),
        (("/nowhere/at/all",), "no such folder"),
        (("1B", "--hardware", "gpu"), "--memory"),
        (("1B", "--data", "x.jsonl", "--rows", "3"), "one or the other"),
        (("1B", "--write", "My Recipe.yaml"), "lower-case"),
    ],
)
def test_wrong_input_ends_with_a_message(arguments: tuple[str, ...], words: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr("flows.planning.gpus.may_use_gpu", lambda device: False)
    code, shown = advise(capsys, *arguments)
    assert code == 2 and words in shown and "fix: " in shown and "Traceback" not in shown


def test_a_recipe_that_cannot_be_is_not_written(tiny: str, tmp_path: Path, capsys) -> None:
    recipe = tmp_path / "recipe" / "nothing.yaml"
    for arguments, words in (
        (("8B",), "no weights here"),
        ((tiny, "--no-answers"), "rows without answers"),
        ((tiny, "--memory", "0.01", "--context", "100000"), "no advice here leads to a smaller model"),
    ):
        code, shown = advise(capsys, *arguments, "--write", str(recipe))
        assert code == 2 and words in " ".join(shown.split()) and not recipe.exists()


def test_rows_that_nobody_can_read_are_named(tiny: str, tmp_path: Path, capsys) -> None:
    file = write(tmp_path / "odd.jsonl", *({"frage": f"Was ist {n}?"} for n in range(30)))
    code, shown = advise(capsys, tiny, "--data", file)
    assert code == 2 and "no record can be read" in shown and re.search(r"python -m flows\.look", shown)
