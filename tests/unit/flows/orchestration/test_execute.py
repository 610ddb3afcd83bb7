"""What a run tells MLflow, and which steps still need room on the machine."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.orchestration import execute as module
from flows.orchestration.execute import execute, open_recorder
from flows.orchestration.servers import Servers
from flows.planning import estimate
from flows.planning.config import Gate, Runtime, Settings, Tracking
from flows.planning.plan import build_plan
from tasks.shared.errors import MachineError
from tasks.shared.store.artifacts import Store

KEY = "k" * 64


def recorder(root: Path, recipe: str = "trial", variant: bool = False, kind: Any = "mlflow") -> Any:
    session = SimpleNamespace(plan=SimpleNamespace(recipe=recipe), variant=variant, store=Store(root))
    settings = Settings({"name": recipe}, Runtime(root=str(root)), Tracking(kind=kind), Gate(), dry_run=False)
    run: Any = SimpleNamespace(session=session)
    return open_recorder(run, settings)


def tell(told: Any) -> None:
    told.notes.mkdir(parents=True)
    (told.notes / KEY[:16]).touch()


def test_a_variant_and_another_recipe_have_told_nothing_for_the_recipe_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").touch()
    tell(recorder(tmp_path, variant=True))
    tell(recorder(tmp_path, recipe="other"))
    assert recorder(tmp_path, variant=True).has_recorded(KEY) and recorder(tmp_path, recipe="other").has_recorded(KEY)
    assert not recorder(tmp_path).has_recorded(KEY)


def test_a_database_that_was_deleted_has_been_told_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").touch()
    tell(recorder(tmp_path))
    assert recorder(tmp_path).has_recorded(KEY)
    (tmp_path / "mlflow.db").unlink()
    assert not recorder(tmp_path).has_recorded(KEY)


def test_without_tracking_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert recorder(tmp_path, kind="none").has_recorded(KEY)


def test_finished_steps_need_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = build_plan(
        {"name": "trial", "steps": {name: {"_target_": "tasks.curate.support.Support"} for name in ("one", "two")}}
    )
    runtime = Runtime(root=str(tmp_path))
    monkeypatch.setattr(estimate, "SPARE_BYTES", 1e18)
    with pytest.raises(MachineError):
        estimate.check_machine(plan, runtime, ["one"])
    estimate.check_machine(plan, runtime, ["one", "two"])


def test_a_sweeps_jobs_can_be_found_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(module, "orchestrate", lambda run, *_: seen.append(run.tags) or [])
    recipe = {"name": "trial", "seed": 0, "models": {}, "steps": {"one": {"_target_": "tasks.curate.support.Support"}}}
    settings = Settings(recipe, Runtime(root=str(tmp_path)), Tracking(kind="none"), Gate(), dry_run=False)
    overrides = ["+recipe=trial", "seed=0"]
    execute(settings, Servers(), overrides, variant=True, tags={"stillroom.sweep": "trial-0123abcd"})
    assert seen[0]["mlflow.source.name"] == "flows/compress.py"
    assert seen[0].get("mlflow.source.git.commit") == seen[0].get("git.commit")
    assert seen[0]["stillroom.sweep"] == "trial-0123abcd" and seen[0]["overrides"] == "+recipe=trial seed=0"
