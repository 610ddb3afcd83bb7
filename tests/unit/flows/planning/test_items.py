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
from tasks.evaluate.generation import Generation
from tasks.shared.errors import ErrorList
from tasks.shared.formats.rows import Message, Row, write_rows
from tasks.shared.formats.targets import Facts, Number
from tasks.shared.formats.tasks import Task, write_tasks
from tasks.shared.items import ItemFindings
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
