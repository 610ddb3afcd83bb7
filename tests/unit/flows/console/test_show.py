"""Screens before a run: the plan at 80 columns, the tree, mermaid, and machines that are too small."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from rich.console import Console

from flows.console import show
from flows.console.show import mermaid, show_plan, wiring
from flows.planning import estimate
from flows.planning.config import Runtime
from flows.planning.plan import build_plan
from tasks.shared.errors import MachineError
from tasks.shared.model.sizes import parameter_count
from tasks.shared.technique import Kind
from tests.tiny_llama import save_tiny


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    return {
        "name": "trial",
        "models": {"teacher": {"path": str(save_tiny(tmp_path))}},
        "steps": {
            "corpus": {"_target_": "tasks.curate.support.Support"},
            "tuned": {"_target_": "tasks.distill.sft.SFT", "inputs": {"model": "models.teacher", "data": "corpus"}},
            "slim": {
                "_target_": "tasks.prune.depth.Depth",
                "inputs": {"model": "tuned", "calibration": "corpus"},
                "ratio": 0.5,
            },
        },
    }


@pytest.fixture
def plan(recipe: dict[str, Any]) -> Any:
    return build_plan(recipe)


@pytest.mark.parametrize("width", [80, 160])
def test_the_plan_fits_the_terminal(plan: Any, tmp_path: Path, width: int) -> None:
    console = Console(width=width, record=True, force_terminal=False, file=(tmp_path / "screen").open("w"))
    show_plan(plan, Runtime(root=str(tmp_path)), console=console)
    text = console.export_text()
    console.file.close()
    assert "prune/depth" in text and "tuned" in text and all(len(line) <= width for line in text.splitlines())


def test_the_plan_shows_what_it_wired(plan: Any, recipe: dict[str, Any], tmp_path: Path) -> None:
    assert list(wiring(plan)) == []
    recipe["steps"] |= {
        "tuned": {"_target_": "tasks.distill.sft.SFT"},
        "words": {"_target_": "tasks.prune.vocabulary.Vocabulary", "inputs": {"model": "slim", "data": ["corpus"]}},
        "answers": {"_target_": "tasks.evaluate.generation.Generation"},
        "verdict": {
            "_target_": "tasks.evaluate.paired.Paired",
            "inputs": {"baseline": "tuned", "candidates": ["slim", "words"]},
            "margins": {"fact": 0.1},
        },
    }
    console = Console(width=120, record=True, force_terminal=False, file=(tmp_path / "screen").open("w"))
    show_plan(build_plan(recipe), Runtime(root=str(tmp_path)), console=console)
    lines = console.export_text().splitlines()
    console.file.close()
    for line in (
        "tuned   model=models.teacher, data=corpus",
        "answers baseline=tuned, candidates=[slim, words], data=corpus",
        "verdict scores=[answers]",
    ):
        assert line in [shown.strip() for shown in lines]


def test_mermaid_has_every_edge(plan: Any) -> None:
    lines = mermaid(plan).splitlines()
    for edge in ("models_teacher --> tuned", "corpus --> tuned", "tuned --> slim", "corpus --> slim"):
        assert f"  {edge}" in lines


def test_pruning_half_the_layers_is_forecast_smaller(plan: Any, tmp_path: Path) -> None:
    found = estimate.estimate_plan(plan, Runtime(root=str(tmp_path)))
    assert found["slim"].disk_bytes < found["tuned"].disk_bytes
    assert all(item.seconds > 0 and item.memory_bytes > 0 and not item.measured for item in found.values())


def test_a_teacher_in_memory_and_more_processes_are_forecast(recipe: dict[str, Any], tmp_path: Path) -> None:
    tuned = recipe["steps"]["tuned"]
    for name, more in {"online": {}, "light": {"teacher_dtype": "bfloat16"}}.items():
        inputs = {**tuned["inputs"], "teacher": "models.teacher"}
        recipe["steps"][name] = {"_target_": "tasks.distill.logits.Logits", "inputs": inputs, **more}
    plan = build_plan(recipe)
    found = estimate.estimate_plan(plan, Runtime(root=str(tmp_path)))
    teacher = next(iter(plan.sources.values()))
    weights = parameter_count(teacher.path)
    assert found["online"].memory_bytes - found["tuned"].memory_bytes == pytest.approx(4 * weights)
    assert found["light"].memory_bytes - found["tuned"].memory_bytes == pytest.approx(2 * weights)
    assert found["online"].seconds - 15 == pytest.approx((found["tuned"].seconds - 15) * 4 / 3)
    two = estimate.estimate_plan(plan, Runtime(root=str(tmp_path), processes=2))
    assert two["tuned"].memory_bytes > 1.5 * found["tuned"].memory_bytes
    assert two["slim"].memory_bytes == found["slim"].memory_bytes


def test_too_little_disk_or_memory_is_refused_before_the_run(
    plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(root=str(tmp_path))
    monkeypatch.setattr(estimate, "SPARE_BYTES", 1e18)
    with pytest.raises(MachineError, match="runtime.root"):
        estimate.check_machine(plan, runtime)
    monkeypatch.setattr(estimate, "SPARE_BYTES", 0)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 1000})())
    with pytest.raises(MachineError, match="memory"):
        estimate.check_machine(plan, runtime)


@pytest.mark.parametrize(("graph", "shown"), [(False, False), (True, True)])
def test_the_graph_is_printed_as_mermaid_on_request(plan: Any, tmp_path: Path, graph: bool, shown: bool) -> None:
    with (tmp_path / "screen").open("w") as screen:
        console = Console(width=80, record=True, force_terminal=False, file=screen)
        show_plan(plan, Runtime(root=str(tmp_path)), console=console, graph=graph)
    assert ("graph LR" in console.export_text()) is shown


@pytest.mark.parametrize(("width", "reads"), [(80, False), (160, True)])
def test_a_narrow_table_leaves_the_inputs_to_the_tree(plan: Any, tmp_path: Path, width: int, reads: bool) -> None:
    with (tmp_path / "screen").open("w") as screen:
        console = Console(width=width, record=True, force_terminal=False, file=screen)
        show_plan(plan, Runtime(root=str(tmp_path)), console=console)
    text = console.export_text()
    assert ("reads" in text) is reads and "+ corpus" in text


@pytest.mark.parametrize(("shipped", "shown"), [("small", "small"), ("models.teacher", "large"), (None, "large")])
def test_a_run_with_overrides_shows_the_model_that_ships(
    monkeypatch: pytest.MonkeyPatch, shipped: str | None, shown: str
) -> None:
    """Otherwise the last one: no recipe's folder has the models of such a run."""
    monkeypatch.setattr(show, "verdicts_of", lambda *_: {"verdict": SimpleNamespace(shipped=shipped)})
    steps = [SimpleNamespace(name=name, kind=Kind.ENGINE) for name in ("small", "large")]
    session = SimpleNamespace(
        variant=True, plan=SimpleNamespace(steps=steps), place=lambda name: SimpleNamespace(folder=f"store/{name}")
    )
    run: Any = SimpleNamespace(session=session, recorder=SimpleNamespace(tracker=SimpleNamespace(address="", link="")))
    assert list(show.where_to_look(run, {})) == [("models", f"store/{shown}")]
