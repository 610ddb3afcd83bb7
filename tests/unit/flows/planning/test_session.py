"""Keys: every input counts, whatever its port is called, and the machine where its speed decides."""

from dataclasses import replace
from pathlib import Path

import pytest

from flows.planning.config import Runtime
from flows.planning.session import Session, changes, describe
from flows.planning.steps import Plan, Source, Step
from tasks.prune.budget import Budget
from tasks.prune.depth import Depth
from tasks.shared.model.sources import ModelSource
from tasks.shared.store.keys import step_key


def opened(root: Path, port: str, content: str) -> tuple[Session, Step]:
    """A plan of one step that reads one model, a file with this content, by the given port."""
    model = root / "model.gguf"
    model.unlink(missing_ok=True)
    model.write_text(content, "utf-8")
    source = Source("models.one", ModelSource(path=str(model)), model)
    step = Step("slim", "prune", "tasks.prune.depth.Depth", Depth(ratio=0.5), {port: ("models.one",)})
    plan = Plan({"name": "trial", "seed": 0}, {"models.one": source}, (step,))
    return Session(plan, Runtime(root=str(root))), step


def key(root: Path, port: str, content: str) -> str:
    session, step = opened(root, port, content)
    return session.key(step)


def test_an_input_is_in_the_key_even_if_its_port_is_called_files(tmp_path: Path) -> None:
    for port in ("model", "files"):
        assert key(tmp_path, port, "one") == key(tmp_path, port, "one") != key(tmp_path, port, "another")


def test_a_key_lists_the_users_own_files_beside_the_ports(tmp_path: Path) -> None:
    """The form that the keys of all finished artifacts have."""
    session, step = opened(tmp_path, "model", "one")
    inputs = {"model": [["models.one", session.digest("models.one")]], "files": []}
    assert session.key(step) == step_key(step.identity(0), session.code_of(step), inputs)


def test_a_step_that_times_the_machine_has_it_in_its_key_and_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, step = opened(tmp_path, "model", "one")
    session.runtime = replace(session.runtime, device="cpu", threads=2)
    kinds = {name: replace(step, technique=Budget(**{name: 10})) for name in ("parameters", "milliseconds")}
    assert [kind.exclusive for kind in kinds.values()] == [False, True]
    keys = {name: session.key(kind) for name, kind in kinds.items()}
    before = describe(session, kinds["milliseconds"], "")
    monkeypatch.setattr("flows.planning.session.processor_of", lambda device: f"another {device}")
    assert session.key(kinds["parameters"]) == keys["parameters"]
    assert session.key(kinds["milliseconds"]) != keys["milliseconds"]
    assert f"machine {before['machine']} -> another cpu, 2 threads" in list(
        changes(before, describe(session, kinds["milliseconds"], ""))
    )
    assert "machine" not in describe(session, kinds["parameters"], "")
