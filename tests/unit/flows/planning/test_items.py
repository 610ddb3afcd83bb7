"""Items of a plan: what a corpus cannot decide is said before anything runs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from flows.console.show import show_plan
from flows.planning import items as module
from flows.planning.config import Runtime
from flows.planning.estimate import estimate_plan
from flows.planning.plan import build_plan
from flows.planning.session import Session
from flows.planning.status import Status
from tasks.curate.reading import preview
from tasks.evaluate.generation import Generation
from tasks.shared.errors import ErrorList
from tasks.shared.formats.rows import Message, Row, write_rows
from tasks.shared.formats.targets import Facts, Number
from tasks.shared.formats.tasks import Task, write_tasks
from tasks.shared.items import ItemFindings
from tests.chat_files import chat, question, write
from tests.tiny_llama import save_tiny


def corpus(folder: Path, sums: int, facts: int) -> Path:
    """Write test rows of two tasks."""
    folder.mkdir()
    talk = (Message(role="user", content="Well?"), Message(role="assistant", content="Seven"))
    rows = [Row(id=f"s{n}", group=f"s{n}", task="sums", key=(Number(value=n),), messages=talk) for n in range(sums)]
    rows += [
        Row(id=f"f{n}", group=f"f{n}", task="qa", key=(Facts(groups=(("a",),)),), messages=talk) for n in range(facts)
    ]
    write_rows(folder / "test.jsonl", rows)
    write_tasks(folder, {"sums": Task(type="reasoning"), "qa": Task(type="qa")})
    return folder


def recipe(model: Path, margins: dict[str, float], **answers: Any) -> dict[str, Any]:
    steps = {
        "corpus": {"_target_": "tasks.curate.support.Support", "test_size": 40},
        "tuned": {"_target_": "tasks.distill.sft.SFT"},
        "slim": {"_target_": "tasks.prune.depth.Depth", "inputs": {"model": "tuned"}},
        "answers": {"_target_": "tasks.evaluate.generation.Generation", **answers},
        "speed": {"_target_": "tasks.evaluate.runtime.Runtime"},
        "verdict": {"_target_": "tasks.evaluate.paired.Paired", "inputs": {"baseline": "tuned", "candidates": ["slim"]}, "margins": margins},
    }  # fmt: skip
    return {"name": "trial", "models": {"teacher": {"path": str(model)}}, "steps": steps}


def check(tmp_path: Path, margins: dict[str, float], data: Path | None = None, **answers: Any) -> ItemFindings:
    plan = build_plan(recipe(save_tiny(tmp_path / "model"), margins, **answers))
    runtime = Runtime(root=str(tmp_path))
    session = Session(plan, runtime)
    status = {step.name: Status(step.name == "corpus" and data is not None) for step in plan.steps}
    if data is not None:
        session.places["corpus"] = SimpleNamespace(out=data)  # type: ignore[assignment]
    return module.check_items(session, status, estimate_plan(plan, runtime))


def test_a_corpus_that_exists_is_counted(tmp_path: Path) -> None:
    found = check(tmp_path, {"fact": 0.1, "value": 0.1, "rouge_l": 0.1}, corpus(tmp_path / "corpus", 8, 300))
    assert not found.errors
    assert [(one.where, one.measure, str(one.items), one.margin) for one in found.decidable] == [
        ("steps.verdict", "fact", "300", 0.1), ("steps.verdict", "value", "8", 0.1), ("steps.verdict", "rouge_l", "300", 0.1)
    ]  # fmt: skip
    (warning,) = found.warnings
    assert "value: 8 test items are too few for a margin of 10 points" in warning and "about 62 test items" in warning


def test_a_margin_without_an_item_is_an_error(tmp_path: Path) -> None:
    found = check(tmp_path, {"label": 0.1}, corpus(tmp_path / "corpus", 8, 8))
    (error,) = found.errors
    assert "steps.verdict.margins.label: no test item" in str(error) and "a measure with test items: fact," in str(
        error
    )


def test_a_measure_that_no_row_has_is_an_error_of_the_plan(tmp_path: Path) -> None:
    found = check(tmp_path, {"fact": 0.1}, corpus(tmp_path / "corpus", 8, 8), measures=("fact", "refusal"))
    assert [error for error in found.errors if "no row for refusal" in str(error)]


def test_before_the_corpus_exists_its_settings_bound_the_items(tmp_path: Path) -> None:
    found = check(tmp_path, {"label": 0.05, "nonsense": 0.1})
    assert (found.decidable[0].measure, str(found.decidable[0].items)) == ("label", "up to 40")
    assert "label: up to 40 test items are too few for a margin of 5 points" in found.warnings[0]
    assert [str(error).split(":")[0] for error in found.errors] == ["steps.verdict.margins.nonsense"], (
        "no step measures it"
    )
    assert str(check(tmp_path, {"label": 0.05}, limit=12).decidable[0].items) == "up to 12"


def test_measures_with_the_same_shortage_share_a_warning(tmp_path: Path) -> None:
    (warning,) = check(tmp_path, {"label": 0.05, "fact": 0.05}).warnings
    assert "label and fact: up to 40 test items" in warning


def test_a_step_that_cannot_say_leaves_unknown_margins_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CountsItems", Generation)  # so that the timing of speed is a step that cannot
    assert check(tmp_path, {"nonsense": 0.1}) == ItemFindings()


def test_a_finished_verdict_is_not_questioned(tmp_path: Path) -> None:
    data = corpus(tmp_path / "corpus", 8, 8)
    plan = build_plan(recipe(save_tiny(tmp_path / "model"), {"label": 0.1}))
    runtime = Runtime(root=str(tmp_path))
    session = Session(plan, runtime, places={"corpus": SimpleNamespace(out=data)})  # type: ignore[dict-item]
    status = {step.name: Status(True) for step in plan.steps}
    assert module.check_items(session, status, estimate_plan(plan, runtime)) == ItemFindings()


def test_the_plan_shows_them_and_ends_in_the_error(tmp_path: Path) -> None:
    plan = build_plan(recipe(save_tiny(tmp_path / "model"), {"label": 0.05, "nonsense": 0.1}))
    console = Console(width=200, record=True, file=(tmp_path / "screen").open("w"))
    with pytest.raises(ErrorList, match="nonsense"):
        show_plan(plan, Runtime(root=str(tmp_path)), console=console)
    text = console.export_text()
    console.file.close()
    assert "label: up to 40 test items; only enough to decide a margin of" in text and "(yours: 5 points)" in text
    assert text.index("models.teacher") < text.index("only enough") < text.index("warning steps.verdict: label")


def on_file(tmp_path: Path, path: str, margins: dict[str, float], steps: dict[str, Any] | None = None) -> ItemFindings:
    """Check a plan whose corpus is not made of this file yet."""
    own = recipe(save_tiny(tmp_path / "model"), margins)
    del own["steps"]["corpus"]
    own["steps"] |= steps or {
        "corpus": {"_target_": "tasks.curate.jsonl.Jsonl", "path": path, "task": {"type": "reasoning"}}
    }
    plan, runtime = build_plan(own), Runtime(root=str(tmp_path))
    status = {step.name: Status(False) for step in plan.steps}
    return module.check_items(Session(plan, runtime), status, estimate_plan(plan, runtime))


def test_a_measure_that_no_row_of_the_file_can_have_is_an_error_before_the_corpus_exists(tmp_path: Path) -> None:
    rows = [chat(question(number), f"It is #### {number}" if number < 9 else "No idea.") for number in range(200)]
    path = write(tmp_path / "rows.jsonl", *rows)
    found = on_file(tmp_path, path, {"value": 0.1, "label": 0.1})
    assert [str(error).split(":")[0] for error in found.errors] == ["steps.verdict.margins.label"]
    assert [(one.measure, str(one.items)) for one in found.decidable] == [("value", "up to 9")]
    steps = {
        "rows": {"_target_": "tasks.curate.read.Read", "path": path},
        "corpus": {"_target_": "tasks.curate.split.Split"},
    }
    (error,) = on_file(tmp_path, path, {"value": 0.1}, steps).errors
    assert "margins.value: no test item has this measure" in str(error) and "rouge_l" in str(error)


def test_a_file_that_the_step_would_refuse_is_an_error_of_the_plan(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *(chat(question(number), "Yes.") for number in range(9)), {"a": 1}, {"b": 2})
    assert "2 of 11 records cannot be read" in str(on_file(tmp_path, path, {"value": 0.1}).errors[0])


def test_the_beginning_of_a_larger_file_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "PREVIEWED", 10)
    path = write(tmp_path / "rows.jsonl", *(chat(question(number), "Yes.") for number in range(11)))
    assert not on_file(tmp_path, path, {"value": 0.1}).errors
